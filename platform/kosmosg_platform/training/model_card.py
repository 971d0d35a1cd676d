"""The model card of an export: what it is, how it was made, how to use it."""

from collections.abc import Mapping
from typing import Any

from kosmosg_platform.config import digest

PURPOSE = {
    "pretrain": "stage 1, multimodal language modelling: it reads text with images in it. Its aligner is untrained.",
    "align": "stage 2, aligner: it turns text into conditions for the decoder.",
    "instruct": "stage 3, instruction tuning by composition: it generates images from text and images.",
}


def model_card(figures: Mapping[str, Any], experiment: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> str:
    """README.md of an export.

    figures: of the run (stage, steps, samples, seconds, ...). experiment: the resolved settings. fingerprint: the
    digests that identify the run (data, parent, decoder).
    """
    stage = str(figures["stage"])
    train = experiment["train"]
    rows = {
        "stage": stage,
        "steps x samples per step": f"{figures['steps']} x {train['global_batch']} = {figures['samples']} samples",
        "training time": f"{figures['seconds']} s",
        "last logged loss": f"{figures['loss']:.4f}" if "loss" in figures else "none",
        "exported weights": "running average" if figures["averaged_weights"] else "last step",
        "precision": experiment["engine"]["precision"],
        "parent": _short(fingerprint.get("parent", "")),
        "decoder": f"{experiment['decoder']} {_short(fingerprint.get('decoder', ''))}",
        "data": ", ".join(f"{kind} {_short(one['sha256'])}" for kind, one in fingerprint.get("data", {}).items()),
        "settings (sha256)": _short(digest(experiment)),
        "MLflow run": str(figures["mlflow_run"]),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: kosmosg
license: apache-2.0
tags: [kosmos-g, image-generation, multimodal]
---
# Kosmos-G, {stage}

{PURPOSE.get(stage, stage).capitalize()}

| | |
|---|---|
{table}

All settings are in `experiment.yaml`; `kosmosg run {stage} experiment.yaml` uses it as a preset.

```python
from kosmosg import KosmosGPipeline, Prompt, KosmosG, KosmosGProcessor

model, processor = KosmosG.from_pretrained("."), KosmosGProcessor.from_pretrained(".")
pipe = KosmosGPipeline(model=model, processor=processor, decoder="{experiment["decoder"]}")
pipe(Prompt("<i> in the snow", images=[image])).images[0].save("out.png")
```
"""


def _short(value: object) -> str:
    """The first characters of a digest; other strings unchanged."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
