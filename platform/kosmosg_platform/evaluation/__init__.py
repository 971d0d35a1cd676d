"""Judging models at scale: pictures drawn in blocks by Ray actors, features measured in blocks, tables and pages.

`blocks` spreads work that is known by name, `painting` and `measuring` do it, `benchmark` and `scoreboard` are
DreamBench and COCO from a data folder to a page. What is measured is said in `kosmosg.eval`.
"""
