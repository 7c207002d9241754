"""CycloneDX SBOM: which distributions, in which versions, made what the bundle holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import Distribution, distributions

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

MAX_LICENCE = 64  # characters; some distributions give the whole text


def bill_of_materials(name: str, sha256: str, created: str) -> bytes:
    """CycloneDX 1.6 JSON of this environment, for the engine `name` with that SHA-256.

    `created` is ISO 8601. Names, versions and licences only: no paths, hosts or users.
    """
    engine = Component(
        name=name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=name,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
    )
    bom = Bom(components=list(_installed()))
    bom.metadata.timestamp = datetime.fromisoformat(created)
    bom.metadata.component = engine
    bom.register_dependency(engine, bom.components)
    return str(JsonV1Dot6(bom).output_as_string(indent=1)).encode()


def _installed() -> Iterator[Component]:
    """One component a distribution; of one that is on the path twice, the first is used."""
    seen: set[str] = set()
    for found in distributions():
        name = _normalised(found.metadata["Name"] or "")
        if name and name not in seen:
            seen.add(name)
            yield _component(name, found)


def _component(name: str, found: Distribution) -> Component:
    purl = PackageURL(type="pypi", name=name, version=found.version)
    return Component(
        name=name,
        version=found.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        licenses=[one] if (one := _licence(found)) else [],
    )


def _licence(found: Distribution) -> License | None:
    text = found.metadata["License-Expression"] or found.metadata["License"] or ""
    short = 0 < len(text) <= MAX_LICENCE and text.isprintable() and text != "UNKNOWN"
    return LicenseFactory().make_from_string(text) if short else None


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
