"""Hold files against the schemas that come with check-jsonschema and others, all in one process.

    schemas_program.py SCHEMA=FILE...

SCHEMA is a name of check-jsonschema, `kubernetes`, or `keda` (its models, which ignore what they do not know). It says what is wrong, and exits 1 if anything is.
"""

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from cloudcoil.models.keda import v1alpha1 as keda

VENDOR = resources.files("check_jsonschema") / "builtin_schemas/vendor"


class Text(yaml.SafeLoader):
    """As YAML 1.2 has it: the `on` of a workflow is a word."""


Text.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if first not in "oO" or not tag.endswith("bool")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def wrong(schema: str, document: dict[str, Any]) -> list[str]:
    if schema == "keda":
        model = getattr(keda, document["kind"]).model_validate(document)
        known = model.model_dump(mode="json", by_alias=True, exclude_none=True)
        return [] if known == document else [f"KEDA knows of this only {known}"]
    if schema == "kubernetes":
        try:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            return [error.message]
        return []
    rules = json.loads((VENDOR / f"{schema}.json").read_text())
    judge = jsonschema.validators.validator_for(rules)(rules)
    return [f"{error.json_path}: {error.message}" for error in judge.iter_errors(document)]


found = []
for argument in sys.argv[1:]:
    schema, _, file = argument.partition("=")
    for document in yaml.load_all(Path(file).read_text(), Loader=Text):
        found += [f"{file}: {line}" for line in wrong(schema, document)]
sys.exit("\n".join(found) or None)
