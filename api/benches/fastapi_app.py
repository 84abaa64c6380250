"""The equivalent of `/` and `/health` as a FastAPI application, with trace context and metrics."""

import os
import re
import secrets
import time

from fastapi import FastAPI, Request
from prometheus_client import Histogram, make_asgi_app
from pydantic import BaseModel

TRACEPARENT = re.compile("^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")
DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Duration of HTTP requests",
    ["http_request_method", "http_route", "http_response_status_code"],
)

app = FastAPI()
app.mount("/metrics", make_asgi_app())


class Greeting(BaseModel):
    message: str
    env: str


class Health(BaseModel):
    status: str
    version: str
    serviceId: str


@app.middleware("http")
async def observe(request: Request, call_next):
    start = time.perf_counter()
    parent = TRACEPARENT.match(request.headers.get("traceparent", ""))
    trace, flags = parent.groups() if parent else (secrets.token_hex(16), "00")
    response = await call_next(request)
    response.headers["traceparent"] = f"00-{trace}-{secrets.token_hex(8)}-{flags}"
    route = getattr(request.scope.get("route"), "path", "")
    DURATION.labels(request.method, route, response.status_code).observe(time.perf_counter() - start)
    return response


@app.get("/")
async def greet() -> Greeting:
    return Greeting(message="Hello from the Infrastructure Lab!", env=os.environ.get("APP_ENV", "local"))


@app.get("/health")
async def health() -> Health:
    return Health(status="pass", version="0.1.0", serviceId="api")
