# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Guest images by name: find the recipe, the kept packages and the bundle; build what is missing or out of date.

Zone: flows (owner's machine).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cvmtool.config import PACKAGE_DIR, Settings, private_dir, resources
from cvmtool.errors import ConfigError
from cvmtool.formats.pack import NAME
from cvmtool.image.archive import find_archive
from cvmtool.image.build import RECIPE_FILE, Source, build_image
from cvmtool.image.bundle import Bundle
from cvmtool.image.store import Store


def image_source(name: str) -> Source:
    """Find the recipe of an image.

    Raises:
        ConfigError: there is none of that name.
    """
    folder = resources("images") / name
    # The name becomes a path, here and below the data directory.
    if not NAME.fullmatch(name) or not (folder / RECIPE_FILE).is_file():
        known = ", ".join(sorted(path.parent.name for path in resources("images").glob(f"*/{RECIPE_FILE}")))
        raise ConfigError(f"there is no image {name!r}", hint=f"known images: {known}")
    return Source(image=folder, package=PACKAGE_DIR)


def package_store(settings: Settings) -> Store:
    """Return the kept packages."""
    return Store(folder=settings.packages_dir)


def bring_up_to_date(
    name: str, settings: Settings, *, progress: Callable[[str], None], notice: Callable[[str], None]
) -> Bundle:
    """Return the bundle of an image; build it if it was never built or something it is made from has changed.

    Raises:
        ConfigError: there is no such image.
        BuildError: it cannot be built.
    """
    return build_image(
        image_source(name),
        _folder(settings, name),
        store=package_store(settings),
        find_archive=find_archive,
        locked=False,
        force=False,
        progress=progress,
        notice=notice,
    )


def keep_image(bundle: Bundle, folder: Path) -> None:
    """Keep an image under names of its user's own: what is built later has other files."""
    private_dir(folder)
    for source in bundle.folder.iterdir():
        try:
            (folder / source.name).hardlink_to(source)
        except OSError:  # another file system
            shutil.copyfile(source, folder / source.name)


def _folder(settings: Settings, name: str) -> Path:
    return settings.bundles_dir / name
