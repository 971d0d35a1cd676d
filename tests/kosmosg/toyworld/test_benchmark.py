"""Scores of the toy world: the truth is perfect, a shuffle is chance, prompts ask for what they are judged by."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kosmosg.toyworld.benchmark import CHANCE, another_view, judge, score, toyworld_prompts
from kosmosg.toyworld.scene import Scene, render, sample_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng, True, entities=2, layout="beside") for _ in range(200)]


def test_true_pictures_score_full_marks(scenes: list[Scene]) -> None:
    scores = score(render(scenes), scenes)
    assert scores["whole"] > 0.98
    assert scores["image"] > 0.97
    assert scores["hue"] < 3.0


def test_pictures_of_other_scenes_score_chance(scenes: list[Scene]) -> None:
    scores = score(np.roll(render(scenes), 1, axis=0), scenes)
    assert abs(scores["shape"] - CHANCE["shape"]) < 0.08
    assert abs(scores["background"] - CHANCE["background"]) < 0.08
    assert abs(scores["hue"] - CHANCE["hue"]) < 15.0
    assert scores["whole"] < 0.04
    # Held-out combinations share words more often than free ones, so a shuffled pattern is right a little more often.
    assert abs(scores["pattern"] - CHANCE["pattern"]) < 0.1


def test_entities_that_swapped_places_are_wrong(scenes: list[Scene]) -> None:
    swapped = []
    for scene in scenes:
        left, right = scene.entities
        moved = (replace(left, x=right.x, y=right.y), replace(right, x=left.x, y=left.y))
        swapped.append(replace(scene, entities=moved))
    different = [scene for scene in scenes if scene.entities[0].kind != scene.entities[1].kind]
    marks = judge(render([s for s, o in zip(swapped, scenes, strict=True) if o in different]), different)
    assert marks.shape.mean() < 0.03
    assert marks.background.mean() > 0.98


def test_a_wrong_hue_costs_the_subject_and_nothing_else(scenes: list[Scene]) -> None:
    turned = [
        replace(scene, entities=(replace(scene.entities[0], hue=(scene.entities[0].hue + 60) % 360), scene.entities[1]))
        for scene in scenes
    ]
    marks = judge(render(turned), scenes)
    first, second = marks.hue_error[0::2], marks.hue_error[1::2]
    assert abs(np.median(first) - 60.0) < 4.0
    assert np.median(second) < 3.0
    assert not marks.whole[0::2].any()
    assert marks.shape.mean() > 0.98


def test_enlarged_pictures_read_the_same(scenes: list[Scene]) -> None:
    pixels = render(scenes[:20])
    large = [Image.fromarray(picture).resize((256, 256), Image.Resampling.NEAREST) for picture in pixels]
    assert score(large, scenes[:20]) == score(pixels, scenes[:20])


def test_pictures_and_scenes_must_match(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="3 images for 2 scenes"):
        judge(render(scenes[:3]), scenes[:2])


@pytest.mark.parametrize("entities", [1, 2, 3])
def test_prompts_show_each_subject_once_and_only_unseen_ones(entities: int) -> None:
    for prompt, scene in toyworld_prompts(20, entities, held_out=True, seed=1):
        assert len(prompt.images) == entities == len(scene.entities)
        assert all(image.size == (32, 32) for image in prompt.images)
        assert all(entity.held_out for entity in scene.entities)
        assert [prompt.text.index(entity.kind) >= 0 for entity in scene.entities]
        assert not any(entity.color in prompt.text.split() for entity in scene.entities)


def test_every_style_asks_for_the_same_scenes() -> None:
    styles = {style: toyworld_prompts(12, 2, seed=3, style=style) for style in ("class", "image", "text", "full")}  # type: ignore[arg-type]
    for row in zip(*styles.values(), strict=True):
        assert len({prompt.scene for prompt in row}) == 1
    by_style = {style: prompts[0].prompt for style, prompts in styles.items()}
    first, second = styles["class"][0].scene.entities
    assert by_style["class"].text.startswith(f"a {first.kind} <i>")
    assert by_style["image"].text.startswith("<i>")
    assert first.kind not in by_style["image"].text
    assert by_style["text"].images == by_style["full"].images == ()
    assert f"{second.pattern} {second.color} {second.kind}" in by_style["full"].text


def test_image_prompts_for_one_entity_mean_the_middle_size() -> None:
    assert {scene.entities[0].radius for _, scene in toyworld_prompts(20, 1, style="image")} == {8}
    assert {scene.entities[0].radius for _, scene in toyworld_prompts(60, 1, style="class")} == {6, 8, 11}


def test_references_are_the_subject_in_another_scene(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(4)
    entity = scenes[0].entities[0]
    views = [another_view(rng, entity, background=True) for _ in range(20)]
    assert len({view.tobytes() for view in views}) > 5
    assert another_view(np.random.default_rng(1), entity, False).tobytes() == (
        another_view(np.random.default_rng(1), entity, False).tobytes()
    )


def test_prompts_are_reproducible_and_seeds_differ() -> None:
    again = [prompt.sha256() for prompt, _ in toyworld_prompts(5, 2, seed=9)]
    assert again == [prompt.sha256() for prompt, _ in toyworld_prompts(5, 2, seed=9)]
    assert again != [prompt.sha256() for prompt, _ in toyworld_prompts(5, 2, seed=10)]
