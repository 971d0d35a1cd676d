"""The toy world: a procedural world in which every claim about the model can be measured on a laptop.

A plug-in: one source, one set of annotators, one benchmark, one frozen decoder and the models trained for it. No other
package imports it; `plugin` adds it to the registries. In order of their use:

* the world: `render` (pixels), `scene` (scenes, captions, edits), `questions`
* data: `source`, `annotators`
* the decoder from scratch: `tokenizers`, `vae`, `contrastive` (CLIP), `unet`, `recogniser`, each with the loop of
  `training_loop`; `acceptance` measures it, `build` puts it together, `assets` knows where it lies
* the model: `shape`
* measuring: `benchmark` (prompts, `Correctness`), `edits`, `reading`, `trials` (seeds and intervals), `judging` (the
  entry of `BENCHMARKS`)
"""
