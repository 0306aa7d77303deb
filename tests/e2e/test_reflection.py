"""A generic gRPC client finds its way by reflection on every server."""

from __future__ import annotations

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

import chorale
from tests.e2e.conftest import BASE
from tests.helpers.up import ChoraleUp


def test_services_and_messages_by_reflection(up: ChoraleUp, client: chorale.Client) -> None:
    endpoints = {
        up.grpc_address: "chorale.v1.AdapterRegistryService",
        client.data_planes()[0].endpoint: "chorale.v1.InferenceService",
    }
    for address, service in endpoints.items():
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert {service, "grpc.health.v1.Health"} <= set(database.get_services())
            assert DescriptorPool(database).FindServiceByName(service).methods
            health = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service)
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_a_call_made_from_reflection_alone(up: ChoraleUp) -> None:
    with grpc.insecure_channel(up.grpc_address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName("chorale.v1.AdapterRegistryService").methods_by_name[
            "ListBaseModels"
        ]
        call = channel.unary_unary(
            "/chorale.v1.AdapterRegistryService/ListBaseModels",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        reply = call(GetMessageClass(method.input_type)())
        assert [model.name for model in reply.base_models] == [BASE]


def test_an_unknown_method_is_unimplemented(up: ChoraleUp) -> None:
    with grpc.insecure_channel(up.grpc_address) as channel:
        call = channel.unary_unary("/chorale.v1.InferenceService/Nothing")
        try:
            call(b"")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore
        else:
            raise AssertionError("an unknown method answered")
