"""The routes of the service as a FastAPI application, to be measured beside it."""

import os

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def greet():
    return {"message": "Hello from the Infrastructure Lab!", "env": os.environ.get("APP_ENV", "local")}


@app.get("/health")
async def health():
    return {"status": "pass"}
