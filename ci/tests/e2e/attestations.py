"""Validates an SBOM and a provenance attestation with the reference libraries of their specifications."""

import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import Parse, ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as Message
from google.protobuf.json_format import MessageToDict
import json

sbom, provenance = (open(path, encoding="utf-8").read() for path in sys.argv[1:3])

version = json.loads(sbom)["specVersion"]
problem = JsonStrictValidator(SchemaVersion.from_version(version)).validate_str(sbom)
assert problem is None, problem

message = Parse(provenance, Message())
Statement.copy_from_pb(message).validate()
assert message.predicate_type == "https://slsa.dev/provenance/v1"
# Fails on fields that are not in the specification.
predicate = ParseDict(MessageToDict(message.predicate), Provenance())
assert predicate.build_definition.build_type.startswith("https://")
assert predicate.run_details.builder.id.startswith("https://")
assert len(predicate.build_definition.external_parameters) > 0
for dependency in predicate.build_definition.resolved_dependencies:
    ResourceDescriptor.copy_from_pb(dependency).validate()
