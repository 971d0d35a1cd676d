"""Properties of the toy world: what training may see, and that words, masks and pixels tell the same story."""

import colorsys
import hashlib
from itertools import product

import numpy as np
import pytest

from kosmosg.errors import DataError
from kosmosg.toyworld.scene import (
    COLORS,
    GROUNDS,
    KINDS,
    LAYOUTS,
    PATTERNS,
    SIZES,
    CaptionWords,
    Scene,
    SceneEntity,
    caption,
    describe,
    is_held_out,
    masks,
    reference,
    render,
    sample_edit,
    sample_scene,
    sample_words,
)


def scenes(count: int, seed: int = 0, **options: object) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, **options) for _ in range(count)]  # type: ignore[arg-type]


def test_training_never_sees_a_held_out_subject() -> None:
    rng = np.random.default_rng(1)
    edits = [sample_edit(rng) for _ in range(500)]
    drawn = scenes(2000) + [side for edit in edits for side in (edit.before, edit.after)]
    assert not any(entity.held_out for scene in drawn for entity in scene.entities)


def test_edits_can_be_of_chosen_kinds() -> None:
    rng = np.random.default_rng(2)
    edits = [sample_edit(rng, kinds=("time", "color")) for _ in range(200)]
    turned = [edit for edit in edits if edit.before.night != edit.after.night]
    coloured = [edit for edit in edits if edit.before.entities != edit.after.entities]
    assert len(turned) + len(coloured) == 200
    assert min(len(turned), len(coloured)) > 60
    assert all(edit.before.ground == edit.after.ground for edit in edits)


def test_held_out_scenes_hold_nothing_else() -> None:
    assert all(entity.held_out for scene in scenes(300, held_out=True) for entity in scene.entities)


def test_one_seventh_is_held_out_and_no_single_word_or_pair_with_it() -> None:
    combinations = set(product(KINDS, COLORS, PATTERNS))
    kept = {combination for combination in combinations if not is_held_out(*combination)}
    assert len(combinations) - len(kept) == round(len(combinations) / 7)
    for first, second in ((0, 1), (0, 2), (1, 2)):  # every pair of words is met in training, only triples are new
        pairs = {(combination[first], combination[second]) for combination in kept}
        assert pairs == {(combination[first], combination[second]) for combination in combinations}


def test_a_seed_names_a_data_set() -> None:
    assert scenes(50, seed=3) == scenes(50, seed=3)
    assert scenes(50, seed=3) != scenes(50, seed=4)
    # Datasets, weights and recorded scores rest on these very pixels: whoever changes them must make all those anew.
    digest = hashlib.sha256(render(scenes(64)).tobytes()).hexdigest()
    assert digest.startswith("10717faa26e4f144")


def test_a_picture_does_not_depend_on_its_batch() -> None:
    drawn = scenes(20)
    together = render(drawn)
    assert all((render([scene])[0] == pixels).all() for scene, pixels in zip(drawn, together, strict=True))


def test_masks_are_disjoint_and_cover_exactly_what_is_not_background() -> None:
    for scene in scenes(100, seed=5):
        layers = masks(scene)
        assert layers.shape == (len(scene.entities), 32, 32)
        assert layers.any((1, 2)).all()
        assert layers.sum(0).max() == 1
        empty = render([Scene(scene.ground, scene.night, scene.layout, ())])[0]
        painted = render([scene])[0]
        outside = ~layers.any(0)
        assert (painted[outside] == empty[outside]).all()
        box = np.zeros((32, 32), dtype=bool)
        for layer, entity in zip(layers, scene.entities, strict=True):
            left, top, right, bottom = entity.box
            box[:] = False
            box[top:bottom, left:right] = True
            assert not (layer & ~box).any()


def test_the_main_colour_has_the_hue_of_the_entity() -> None:
    for scene in scenes(50, seed=6, entities=1):
        entity = scene.entities[0]
        inside = render([scene])[0][masks(scene)[0]] / 255.0
        hues = [colorsys.rgb_to_hsv(*pixel)[0] * 360.0 for pixel in inside if np.ptp(pixel) > 0.5]
        assert len(hues) > 10
        error = np.abs(np.array(hues) - entity.hue) % 360.0
        assert np.minimum(error, 360.0 - error).max() < 1.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_two_sprites_look_alike(layout: str) -> None:
    x, y = LAYOUTS[layout][0]
    for radius in SIZES if layout == "alone" else [6]:
        looks = {
            render([Scene("sand", False, "alone", (SceneEntity(kind, 200.0, pattern, x, y, radius),))]).tobytes()
            for kind, pattern in product(KINDS, PATTERNS)
        }
        assert len(looks) == len(KINDS) * len(PATTERNS)


def test_captions_tell_the_scene_and_spans_are_noun_phrases() -> None:
    rng = np.random.default_rng(7)
    for scene in scenes(200, seed=7):
        text, spans = caption(scene, sample_words(rng, scene))
        assert len(spans) == len(scene.entities)
        for (start, end), entity in zip(spans, scene.entities, strict=True):
            assert text[start:end].startswith(("a ", "an "))
            assert text[start:end].endswith(entity.kind)
            assert not text[end:].startswith(entity.kind)
        assert list(spans) == sorted(spans)
        assert ("at night" in text) == scene.night
    full = caption(scene).text
    assert all(describe(entity, CaptionWords(size=scene.layout == "alone")) in full for entity in scene.entities)


def test_the_example_of_the_documentation() -> None:
    ball = SceneEntity("ball", 0.0, "striped", 8, 17, 6)
    cat = SceneEntity("cat", 220.0, "spotted", 23, 17, 6)
    scene = Scene("snow", True, "beside", (ball, cat))
    assert caption(scene).text == "a striped red ball and a spotted blue cat in the snow at night"
    assert caption(scene, CaptionWords(pattern=False, color=False), place=False).text == "a ball and a cat"
    assert describe(
        SceneEntity("fish", 47.0, "split", 16, 17, 11), CaptionWords(pattern=False, color=True, size=False)
    ) == ("an orange fish")


def test_a_caption_needs_words_for_every_entity() -> None:
    scene = scenes(1, entities=2)[0]
    with pytest.raises(DataError, match="1 choices of words for 2 entities"):
        caption(scene, [CaptionWords()])


def test_scenes_survive_json() -> None:
    for scene in scenes(50):
        assert Scene.from_json(scene.to_json()) == scene
    for damaged in ("", "{}", '{"ground": "moon"}', scene.to_json().replace(scene.layout, "heap")):
        with pytest.raises(DataError):
            Scene.from_json(damaged)


def test_asking_for_too_many_entities_is_refused() -> None:
    with pytest.raises(DataError, match="1 to 3 entities, not 4"):
        sample_scene(np.random.default_rng(0), entities=4)


def test_references_show_the_subject_alone_on_white_or_on_its_ground() -> None:
    for scene in scenes(30, seed=8, entities=2):
        plain, kept = reference(scene, 1), reference(scene, 1, background=True)
        assert plain.shape == kept.shape == (32, 32, 3)
        assert (plain[0] == 255).all()  # the margin
        same = (plain == kept).all(-1)
        assert (plain[~same] == 255).all()  # they differ where the background was taken away only
        assert same.any()


def test_edits_change_what_they_say_and_nothing_else() -> None:
    rng = np.random.default_rng(9)
    seen = set()
    for _ in range(300):
        before, instruction, after = sample_edit(rng)
        changed = [a != b for a, b in zip(before.entities, after.entities, strict=True)]
        place = (before.ground, before.night) != (after.ground, after.night)
        assert sum(changed) + place == 1
        seen.add(instruction.split()[0] + instruction.split()[1])
        if any(changed):
            index = changed.index(True)
            was, now = before.entities[index], after.entities[index]
            assert f"the {was.kind}" in instruction
            assert instruction.split()[-1] in (now.color, now.pattern, now.kind)
            assert (was.x, was.y, was.radius) == (now.x, now.y, now.radius)
            assert sum(entity.kind == was.kind for entity in before.entities) == 1
        elif before.ground != after.ground:
            assert after.ground in instruction
        else:
            assert instruction == ("make it night" if after.night else "make it day")
    assert seen == {"makeit", "makethe", "turnthe"}


def test_backgrounds_differ() -> None:
    looks = {render([Scene(ground, night, "alone", ())]).tobytes() for ground in GROUNDS for night in (False, True)}
    assert len(looks) == 8
