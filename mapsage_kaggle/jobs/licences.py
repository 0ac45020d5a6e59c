"""What a licence is called: by the identifier that model hubs read, and by Kaggle's own name for models.

https://huggingface.co/docs/hub/repositories-licenses and Kaggle's docs/models_metadata.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = {
    "apache-2.0": "Apache 2.0",
    "cc-by-3.0": "Attribution 3.0 Unported (CC BY 3.0)",
    "cc-by-4.0": "Attribution 4.0 International (CC BY 4.0)",
    "cc-by-nd-4.0": "Attribution-NoDerivatives 4.0 International (CC BY-ND 4.0)",
    "cc-by-nc-4.0": "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)",
    "cc-by-nc-nd-4.0": "Attribution-NonCommercial-NoDerivatives 4.0 International (CC BY-NC-ND 4.0)",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0",
    "cc-by-sa-3.0": "CC BY-SA 3.0",
    "cc-by-sa-4.0": "CC BY-SA 4.0",
    "cc0-1.0": "CC0: Public Domain",
    "cdla-permissive-1.0": "Community Data License Agreement - Permissive - Version 1.0",
    "cdla-sharing-1.0": "Community Data License Agreement - Sharing - Version 1.0",
    "agpl-3.0": "GNU Affero General Public License 3.0",
    "gfdl": "GNU Free Documentation License 1.3",
    "lgpl-3.0": "GNU Lesser General Public License 3.0",
    "gpl-2.0": "GPL 2",
    "gpl-3.0": "GPL 3",
    "mit": "MIT",
    "odc-by": "ODC Attribution License (ODC-By)",
    "pddl": "ODC Public Domain Dedication and Licence (PDDL)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """A licence.

    Attributes:
        text: As it was given.
        identifier: As model hubs read it; ``other`` for one that they do not know.
        kaggle: As Kaggle names it; None where it has no name for it.
    """

    text: str
    identifier: str
    kaggle: str | None


def licence_of(text: str) -> Licence:
    """Return the licence that is meant: an identifier, SPDX's too, or a name, whatever its case."""
    wanted = re.sub(r"-(only|or-later)$", "", _plain(text))
    for identifier, name in _NAMES.items():
        short = name.rpartition("(")[2].rstrip(")")
        if wanted in {identifier, _plain(name), _plain(short)}:
            return Licence(text=text, identifier=identifier, kaggle=name)
    return Licence(text=text, identifier="other", kaggle=None)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
