"""A build tool that is also a persistent worker, by the JSON protocol of Bazel's persistent workers.

It leaves a file in the folder where it is started, as tools do. For each request it reports the process that served the
request, and the value of CONFORMANCE_ENV there.
"""

import json
import os
import sys
from pathlib import Path


def told(request: int, arguments: list[str]) -> str:
    """Return "served by process 17, request 2, environment of-the-pool, …"."""
    environment = os.environ.get("CONFORMANCE_ENV", "")
    return f"served by process {os.getpid()}, request {request}, environment {environment}, arguments {arguments}"


if "--persistent_worker" in sys.argv:
    Path("left-by-the-tool").touch()
    for number, line in enumerate(sys.stdin, 1):
        asked = json.loads(line)
        answer = {"exitCode": 0, "output": told(number, asked["arguments"]), "requestId": asked.get("requestId", 0)}
        print(json.dumps(answer), flush=True)
else:
    print(told(1, sys.argv[1:]), file=sys.stderr)
