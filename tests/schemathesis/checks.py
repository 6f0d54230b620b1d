"""Checks that schemathesis lacks for this API: an accepted call has a result, which the callback `result` describes."""

import re
import time
import uuid

import jsonschema_rs
import requests
import schemathesis

# A job takes milliseconds; on a busy machine some seconds.
PATIENCE = 60
INTERVAL = 0.005

# Validators of results, by path and verb of their calls.
VALIDATORS = {}


# Valid names of jobs. Each may be used once, but schemathesis repeats a few of them again and again.
JOB = re.compile("[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", re.IGNORECASE)


@schemathesis.hook
def before_call(ctx, case, kwargs):
    job = case.headers and case.headers.get("X-Job-UUID")
    if isinstance(job, str) and JOB.fullmatch(job):
        case.headers["X-Job-UUID"] = uuid.uuid4().hex


@schemathesis.check
def job_result_conformance(ctx, response, case):
    """Follows the job of an accepted call to its end, and validates the result against the document."""
    if response.status_code != 202 or not response.content:
        return
    if case.method != case.operation.method:
        # The server also accepts other spellings of paths: this is another call, described at its own path.
        return
    result = follow(response.json()["location"])
    assert result.status_code in (200, 503), f"the job ended with {result.status_code}: {result.text}"
    assert result.headers["Content-Type"].startswith("application/json"), result.headers["Content-Type"]
    body = result.json()
    validator(case.operation).validate(body)
    assert ("error" in body) == (result.status_code == 503), f"{result.status_code}: {body}"
    code = body.get("error", {}).get("code")
    assert code != "SYS.1000", f"the controller is to blame: {body}"


def follow(location):
    end = time.monotonic() + PATIENCE
    while True:
        result = requests.get(location, timeout=PATIENCE)
        if result.status_code != 202:
            return result
        assert time.monotonic() < end, f"{location} is still running after {PATIENCE} s"
        time.sleep(INTERVAL)


def validator(operation):
    key = operation.path, operation.method.lower()
    if key not in VALIDATORS:
        document = operation.schema.raw_schema
        hooked = document["paths"][key[0]][key[1]]["callbacks"]["result"]["{$request.header.X-Web-Hook}"]["post"]
        result = hooked["requestBody"]["content"]["application/json"]["schema"]
        VALIDATORS[key] = jsonschema_rs.Draft202012Validator({**result, "components": document["components"]})
    return VALIDATORS[key]
