"""What the service does for `GET /health`, in the framework that the lab had before: counted, traced, and checked against its schema."""

import secrets
import time

from fastapi import FastAPI, Request, Response
from prometheus_client import Histogram
from pydantic import BaseModel, Field

app = FastAPI()
requests = Histogram(
    "http_server_request_duration_seconds",
    "How long requests took",
    ["http_request_method", "http_route", "http_response_status_code"],
)


class Health(BaseModel):
    status: str
    version: str
    service_id: str = Field(serialization_alias="serviceId")


@app.middleware("http")
async def observe(request: Request, call_next) -> Response:
    start = time.perf_counter()
    parent = request.headers.get("traceparent")
    trace = parent.split("-")[1] if parent else secrets.token_hex(16)
    response = await call_next(request)
    response.headers["traceparent"] = f"00-{trace}-{secrets.token_hex(8)}-01"
    route = request.scope["route"].path
    requests.labels(request.method, route, response.status_code).observe(
        time.perf_counter() - start
    )
    return response


@app.get("/health")
async def health() -> Health:
    return Health(status="pass", version="0.1.0", service_id="api")


# Without any of that, for comparison.
bare = FastAPI()


@bare.get("/health")
async def bare_health():
    return {"status": "pass", "version": "0.1.0", "serviceId": "api"}
