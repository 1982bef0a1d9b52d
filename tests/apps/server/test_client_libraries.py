"""The client libraries of docs/recipes.md against a server with a small model of each family.

Each test runs the blocks of a section in a process of its own, as a user would, and then some lines more. So
warnings of a client are not errors here.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import bifrons
import pytest
from PIL import Image, ImageDraw

from ...models import SHAPES_JANUS, SHAPES_VL2

PAGE = (Path(bifrons.__file__).parent / "docs" / "recipes.md").read_text()
for embedded, ours in (("janus-nano", SHAPES_JANUS), ("vl2-nano", SHAPES_VL2)):
    PAGE = PAGE.replace(embedded, Path(ours).name)
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
ADDRESS = "http://127.0.0.1:8000"


def blocks(section: str, language: str) -> list[str]:
    """The code blocks of a section."""
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("-m", SHAPES_JANUS, "-m", SHAPES_VL2, "--rows", 8, "--context", 2048)


@pytest.fixture
def folder(tmp_path) -> Path:
    """With `circle.png`, a red circle."""
    picture = Image.new("RGB", (128, 128), (245, 245, 245))
    ImageDraw.Draw(picture).ellipse((30, 30, 98, 98), fill=(220, 30, 30))
    picture.save(tmp_path / "circle.png")
    return tmp_path


@pytest.fixture
def run(server, folder):
    """Runs a command in the folder, with `more` environment; returns what it prints."""

    def call(*words: str, **more: str) -> str:
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **more}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return call


@pytest.fixture
def run_python(run, server):
    """Runs a section's Python blocks, then `more` lines, which fill the dict `result`; returns the lines that
    the blocks print, and the result."""

    def call(section: str, more: str) -> tuple[list[str], dict[str, Any]]:
        (code,) = blocks(section, "python")
        code += f"\nimport json\nresult = {{}}\nprint()\n{more}\nprint(json.dumps(result))\n"
        *lines, last = run(
            sys.executable, "-W", "ignore", "-c", code.replace(ADDRESS, server.url)
        ).splitlines()
        return lines, json.loads(last)

    return call


ORDERS = """
for name in ("shapes-janus", "shapes-vl2"):
    for order in (1, -1):
        messages[0]["content"] = messages[0]["content"][::-1]
"""


def test_every_section_has_blocks_that_are_run():
    assert [*SECTIONS] == ["curl", "OpenAI", "LangChain", "instructor", "LiteLLM", "llm", "Open WebUI"]
    assert [len(blocks(name, "python")) for name in SECTIONS] == [0, 1, 1, 1, 1, 0, 0]
    assert PAGE.count("```") == 2 * sum(
        len(blocks(name, language)) for name in SECTIONS for language in ("python", "bash", "yaml")
    )


def test_curl(run, server):
    models, chosen = (
        json.loads(run("bash", "-c", one.replace(ADDRESS, server.url))) for one in blocks("curl", "bash")
    )
    assert [one["id"] for one in models["data"]] == ["shapes-janus", "shapes-vl2"]
    assert chosen["choices"][0]["message"]["content"] == "red"


def test_openai(run_python, folder):
    lines, result = run_python(
        "OpenAI",
        ORDERS
        + """
        reply = client.chat.completions.create(model=name, messages=messages)
        result[f"{name} {order}"] = reply.choices[0].message.content
""",
    )
    with Image.open(folder / "painted.png") as painted:
        assert painted.size == (128, 128)
    assert lines[0] == "red"
    assert re.fullmatch("redcolor='(red|green|blue|yellow)' shape='(circle|square|triangle)'", lines[1])
    assert result == {
        f"{name} {order}": "red" for name in ("shapes-janus", "shapes-vl2") for order in (1, -1)
    }


def test_langchain(run_python):
    lines, result = run_python(
        "LangChain",
        ORDERS
        + """
        chat = ChatOpenAI(base_url=model.openai_api_base, api_key="none", model=name, max_tokens=100)
        result[f"{name} {order}"] = chat.invoke(messages).content

for method in ("json_schema", "function_calling"):
    result[method] = model.with_structured_output(Shape, method=method).invoke(messages).model_dump()

class Anything(BaseModel):
    pass

loose = ChatOpenAI(base_url=model.openai_api_base, api_key="none", model="shapes-vl2", max_tokens=30)
loose = loose.with_structured_output(Anything, method="json_mode")
result["json_mode"] = isinstance(loose.invoke("Answer with JSON."), Anything)

from langchain_core.tools import tool

@tool
def paint(color: Literal["red", "green"]) -> str:
    "Paint the picture."
    return f"It is {color} now."

bound = model.bind_tools([paint], tool_choice="any", parallel_tool_calls=False)
question = [*messages]
call = bound.invoke(question)
result["call"] = call.tool_calls[0]["name"]
result["color"] = call.tool_calls[0]["args"]["color"]
question += [call, paint.invoke(call.tool_calls[0])]
result["last"] = model.bind_tools([paint]).invoke(question).text
whole = None
for chunk in bound.stream(messages):
    whole = chunk if whole is None else whole + chunk
result["streamed"] = whole.tool_calls[0]["args"] == call.tool_calls[0]["args"]
""",
    )
    assert lines[0] == "red"
    assert lines[1].startswith("redcolor='")
    for name in ("shapes-janus", "shapes-vl2"):
        assert result.pop(f"{name} 1") == result.pop(f"{name} -1") == "red"
    for method in ("json_schema", "function_calling"):
        assert set(result.pop(method)) == {"color", "shape"}
    assert result.pop("color") in ("red", "green")
    assert result.pop("last")
    assert result == {"json_mode": True, "call": "paint", "streamed": True}


def test_instructor(run_python):
    lines, result = run_python(
        "instructor",
        """
from collections.abc import Iterable

ask = {"model": "shapes-janus", "messages": messages, "max_retries": 0}
for mode in ("JSON_SCHEMA", "TOOLS"):
    structured = instructor.from_openai(client, mode=instructor.Mode[mode])
    result[mode] = structured.create(**ask, response_model=Shape).model_dump()
    *_, last = structured.create_partial(**ask, response_model=Shape)
    result[f"{mode} streamed"] = last.model_dump()
parallel = instructor.from_openai(client, mode=instructor.Mode.PARALLEL_TOOLS)
must = {"tool_choice": "required"}  # in place of the mode's "auto"
shapes = parallel.create(**ask, response_model=Iterable[Shape], extra_body=must)
result["parallel"] = [one.model_dump() for one in shapes]

class Anything(BaseModel):
    pass

question = [{"role": "user", "content": "What is red?"}]
for mode in ("JSON", "MD_JSON"):
    loose = instructor.from_openai(client, mode=instructor.Mode[mode])
    try:
        made = loose.create(model="shapes-vl2", messages=question, max_retries=0, response_model=Anything,
                            max_tokens=30)
    except Exception as error:
        result[mode] = str(error)
    else:
        result[mode] = made.model_dump()
""",
    )
    assert lines[0].startswith("color='")
    assert result["JSON_SCHEMA"] == result["JSON_SCHEMA streamed"]
    assert result["TOOLS"] == result["TOOLS streamed"]
    assert 1 <= len(result["parallel"]) <= 8
    for shape in (result["JSON_SCHEMA"], result["TOOLS"], *result["parallel"]):
        assert set(shape) == {"color", "shape"}
    assert result["JSON"] == {}
    assert "JSON" in result["MD_JSON"]  # the model wrote words


def test_litellm(run_python, folder):
    lines, result = run_python(
        "LiteLLM",
        ORDERS
        + """
        reply = completion(f"openai/{name}", messages, **server)
        result[f"{name} {order}"] = reply.choices[0].message.content

from typing import Literal

from pydantic import BaseModel
from litellm import stream_chunk_builder

class Number(BaseModel):
    number: Literal[1, 2, 3]

ask = {"model": "openai/shapes-vl2", "messages": messages, "max_tokens": 60, **server}
chunks = list(completion(**ask, stream=True))
result["streamed"] = stream_chunk_builder(chunks).choices[0].message.content
result["number"] = json.loads(completion(**ask, response_format=Number).choices[0].message.content)
tools = [{"type": "function", "function": {"name": "count", "parameters": Number.model_json_schema()}}]
call = completion(**ask, tools=tools, tool_choice="required").choices[0].message.tool_calls[0].function
result["call"] = [call.name, json.loads(call.arguments)]
neutral = {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0, "top_p": 1, "n": 1, "user": "me"}
result["neutral"] = completion(**ask, **neutral, temperature=0, stop=[]).choices[0].message.content
""",
    )
    assert lines[0] == "red"
    with Image.open(folder / "painted.png") as painted:
        assert painted.size == (128, 128)
    for name in ("shapes-janus", "shapes-vl2"):
        assert result[f"{name} 1"] == result[f"{name} -1"] == "red"
    assert result["streamed"] == result["neutral"] == "red"
    assert result["number"]["number"] in (1, 2, 3)
    assert result["call"][0] == "count"
    assert result["call"][1]["number"] in (1, 2, 3)


def test_llm(run, server, folder):
    (models,), (commands,) = blocks("llm", "yaml"), blocks("llm", "bash")
    (folder / "extra-openai-models.yaml").write_text(models.replace(ADDRESS, server.url))
    printed = run("bash", "-ec", commands, LLM_USER_PATH=str(folder), OPENAI_API_KEY="none")
    first, form, last = printed.splitlines()
    assert first == "red"
    assert json.loads(form) in ("red", "green", "blue")
    assert last
