"""Published results of other methods, each measured under a protocol of its own.

They are context, not a ranking. Some methods have different values in two papers, because the protocols differ.
Sources: the tables of arXiv 2411.17786 and 2411.15466 and of the Kosmos-G paper (arXiv 2310.02992); for FID also
facebookresearch/metaquery (README).
"""

from dataclasses import dataclass

LABEL = "published, own protocol"


@dataclass(frozen=True)
class Fidelity:
    """A row of the DreamBench table."""

    method: str
    base: str
    references: str
    """Number of photos of the subject that the method gets."""
    dino: float
    clip_i: float
    clip_t: float | None


DREAMBENCH = (
    Fidelity("Real images", "-", "-", 0.774, 0.885, None),
    Fidelity("DreamBooth, tuned", "Imagen", "3-5", 0.696, 0.812, 0.306),
    Fidelity("DreamBooth, tuned", "SD 1.5", "3-5", 0.668, 0.803, 0.305),
    Fidelity("Textual Inversion, tuned", "SD 1.5", "3-5", 0.569, 0.780, 0.255),
    Fidelity("Custom Diffusion, tuned", "SD 1.5", "3-5", 0.643, 0.790, 0.305),
    Fidelity("Re-Imagen", "Imagen", "1-3", 0.600, 0.740, 0.270),
    Fidelity("SuTI", "Imagen", "1-3", 0.741, 0.819, 0.304),
    Fidelity("BLIP-Diffusion", "SD 1.5", "1", 0.594, 0.779, 0.300),
    Fidelity("BLIP-Diffusion, tuned", "SD 1.5", "3-5", 0.670, 0.805, 0.302),
    Fidelity("ELITE", "SD 1.5", "1", 0.621, 0.771, 0.293),
    Fidelity("IP-Adapter", "SD 1.5", "1", 0.667, 0.813, 0.289),
    Fidelity("IP-Adapter", "SDXL", "1", 0.613, 0.810, 0.292),
    Fidelity("Kosmos-G", "SD 1.5", "1", 0.694, 0.847, 0.287),
    Fidelity("lambda-Eclipse", "Kandinsky 2.2", "1", 0.613, 0.783, 0.307),
    Fidelity("MS-Diffusion", "SDXL", "1", 0.671, 0.792, 0.321),
    Fidelity("DreamCache", "SD 1.5", "1", 0.713, 0.810, 0.298),
    Fidelity("DreamCache", "SD 2.1", "1", 0.767, 0.816, 0.301),
    Fidelity("Subject-Diffusion", "SD 2.1", "1", 0.771, 0.779, 0.293),
    Fidelity("UNO", "FLUX", "1+", 0.760, 0.835, 0.304),
    Fidelity("Diptych Prompting", "FLUX", "1", 0.688, 0.758, 0.345),
)


@dataclass(frozen=True)
class Fid:
    """A row of the FID table."""

    method: str
    fid: float


COCO_FID = (
    Fid("Kosmos-G (frozen SD 1.5)", 10.99),
    Fid("Emu", 11.66),
    Fid("GILL", 12.20),
    Fid("Emu3", 12.80),
    Fid("MetaMorph", 11.8),
    Fid("Show-o", 9.24),
    Fid("Transfusion", 8.70),
    Fid("LMFusion", 8.20),
    Fid("MetaQuery-B (frozen SD 1.5)", 8.91),
    Fid("MetaQuery-L (frozen SD 1.5)", 8.87),
    Fid("MetaQuery-XL (frozen SD 1.5)", 8.69),
)
