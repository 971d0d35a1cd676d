"""Shapes of new models: every entry makes a model, a wrong word is refused with the nearest."""

import subprocess
import sys

import pytest

from kosmosg.errors import ConfigError
from kosmosg.plugins import load_plugins
from kosmosg.shapes import MODEL_SHAPES, new_config


@pytest.fixture(scope="module", autouse=True)
def _plugins() -> None:
    load_plugins()


def test_every_shape_makes_the_configuration_of_a_model() -> None:
    for shape in MODEL_SHAPES:
        config = new_config(shape, 300)
        assert config.model_type == "kosmosg"
        assert config.text_config.vocab_size == (64_007 if shape == "paper" else 300)


def test_the_toy_world_adds_its_shape_through_its_plugin() -> None:
    config = new_config("toyworld", 300)
    assert (config.vision_config.image_size, config.latent_query_num, config.aligner_config.num_queries) == (32, 16, 24)


def test_a_wrong_word_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model\.init.*did you mean toyworld"):
        new_config("toywrld", 300)


def test_naming_shapes_costs_no_heavy_import() -> None:
    code = """
import sys
from kosmosg.plugins import load_plugins
import kosmosg.shapes
load_plugins()
print(sorted({"torch", "transformers", "diffusers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
