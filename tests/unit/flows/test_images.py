# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError
from cvmtool.flows import images
from cvmtool.flows.images import bring_up_to_date, image_source


@pytest.mark.parametrize("name", ["base", "operator", "gpu"])
def test_an_image_has_a_recipe(name):
    source = image_source(name)
    assert source.image == Path(__file__).parents[3] / "images" / name
    assert source.recipe().name == name


@pytest.mark.parametrize("name", ["nothing", "", "../images/base", "base/init", "/"])
def test_an_image_without_a_recipe_is_refused_with_those_there_are(name):
    with pytest.raises(ConfigError) as refusal:
        image_source(name)
    assert "base, gpu, operator" in refusal.value.hint


def test_an_image_is_built_into_the_data_directory_from_kept_packages(monkeypatch):
    settings = load_settings()
    built = []
    monkeypatch.setattr(
        images, "build_image", lambda source, out, **named: built.append((source, out, named)) or "bundle"
    )
    assert bring_up_to_date("base", settings, progress=print, notice=print) == "bundle"
    source, out, named = built[0]
    assert source == image_source("base")
    assert out == settings.bundles_dir / "base"
    assert named["store"].folder == settings.packages_dir
    assert (named["locked"], named["force"]) == (False, False)
