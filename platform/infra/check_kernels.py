"""Whether torch has kernels for the GPUs that an image is for: the last step of the image's build, without a GPU.

    python platform/infra/check_kernels.py sm_70
    python platform/infra/check_kernels.py sm_80 sm_90

Exit code 1, and one sentence, if one is missing: the first CUDA call on that GPU would fail with "no kernel image is
available for execution on the device".
"""

import sys
from collections.abc import Sequence


def missing(wanted: Sequence[str], built: Sequence[str]) -> list[str]:
    """The GPU generations among `wanted` that none of the `built` kernels runs on.

    Kernels of `sm_80` run on every 8.x (they are binary compatible within a major version, towards newer minor ones);
    `compute_90` is PTX, which is compiled for any GPU at least as new.
    """

    def runs(have: str, want: str) -> bool:
        kind, _, number = have.partition("_")
        (major, minor), (other_major, other_minor) = _version(number), _version(want.partition("_")[2])
        if kind == "compute":
            return (major, minor) <= (other_major, other_minor)
        exact = number[-1].isalpha()  # sm_90a: for that GPU alone
        return major == other_major and (minor == other_minor if exact else minor <= other_minor)

    return [want for want in wanted if not any(runs(have, want) for have in built)]


def _version(number: str) -> tuple[int, int]:
    digits = number.rstrip("af")
    return int(digits[:-1]), int(digits[-1])


def main() -> None:
    """Check the kernels that the arguments name."""
    import torch

    # torch.cuda.get_arch_list() is empty on a machine without a GPU, where images are built.
    built = torch._C._cuda_getArchFlags().split() if torch.version.cuda else []
    absent = missing(sys.argv[1:], built)
    if absent:
        print(
            f"torch {torch.__version__} has no kernels for {', '.join(absent)}; it has {', '.join(built) or 'none'}. "
            "Choose another torch with --build-arg TORCH=..., or the GPUs that you have with --build-arg KERNELS=...",
            file=sys.stderr,
        )
        sys.exit(1)
    print(f"torch {torch.__version__} has kernels for {', '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
