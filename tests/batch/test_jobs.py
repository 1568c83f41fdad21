"""Jobs are named by their content, and every wrong line is told by its number."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mixcache import zoo
from mixcache.batch.folder import Folder
from mixcache.batch.jobs import BadLine, Batch, Job, read_jobs

DEFAULTS = Job(batch="b", seed=7, num_inference_steps=20)


def read(path: Path) -> list[Job | BadLine]:
    return list(read_jobs(path, DEFAULTS))


def lines(tmp_path: Path, *rows: object) -> list[Job | BadLine]:
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read(path)


def test_a_line_says_what_is_its_own(tmp_path: Path) -> None:
    job, other = lines(
        tmp_path,
        {"prompt": "a cat", "seed": 1, "size": "832x480", "frames": 81, "steps": 30, "guidance": 5},
        {"prompt": "a dog", "negative_prompt": "blur", "steps": None},
    )
    assert job == Job(
        batch="b",
        prompt="a cat",
        seed=1,
        width=832,
        height=480,
        num_frames=81,
        num_inference_steps=30,
        guidance_scale=5,
    )
    assert other == replace(DEFAULTS, prompt="a dog", negative_prompt="blur")
    assert isinstance(other, Job)
    assert other.arguments == {"num_inference_steps": 20, "negative_prompt": "blur"}


def test_every_field_is_in_the_name() -> None:
    job = Job(batch="b", prompt="a cat")
    changed = [
        replace(job, **{name: "other" if name in ("batch", "prompt", "negative_prompt") else 1}) for name in asdict(job)
    ]
    names = {other.id for other in changed}
    assert len(names | {job.id}) == len(changed) + 1
    assert Job(batch="b", prompt="a cat").id == job.id
    assert all(len(name) == 24 and int(name, 16) for name in names)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes at character 2"),
        ("[" * 100_000, "is not JSON: "),
        ("17", "is no JSON object"),
        ({"promt": "a cat"}, "unknown key 'promt'; did you mean 'prompt'?"),
        ({"prompt": "a cat", "out": "../../etc/passwd"}, "unknown key 'out'"),
        ({"prompt": "a cat", "id": "../cat"}, "unknown key 'id'"),
        ({"seed": 3}, "has no prompt"),
        ({"prompt": " "}, "has no prompt"),
        ({"prompt": 3}, "prompt=3 is no text"),
        ({"prompt": "a cat", "seed": -1}, "seed=-1 must be a whole number from 0 to 9223372036854775807"),
        ({"prompt": "a cat", "seed": 2**63}, "seed=9223372036854775808 must be a whole number"),
        ({"prompt": "a cat", "seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"prompt": "a cat", "seed": True}, "seed=True must be a whole number"),
        ({"prompt": "a cat", "size": "wide"}, "size='wide' is not WIDTHxHEIGHT, such as 832x480"),
        ({"prompt": "a cat", "size": "0x480"}, "size='0x480' is not WIDTHxHEIGHT, such as 832x480"),
        ({"prompt": "a cat", "size": "832x99999"}, "height=99999 must be a whole number from 1 to 16384"),
        ({"prompt": "a cat", "frames": 0}, "num_frames=0 must be a whole number from 1"),
        ({"prompt": "a cat", "steps": 0}, "num_inference_steps=0 must be a whole number from 1"),
        ({"prompt": "a cat", "guidance": float("nan")}, "guidance_scale=nan must be a number from 0 to 1000"),
        ({"prompt": "a cat", "guidance": "5"}, "guidance_scale='5' must be a number from 0 to 1000"),
    ],
)
def test_a_wrong_line_is_told_and_the_others_are_read(row: object, message: str, tmp_path: Path) -> None:
    before, bad, after = lines(tmp_path, {"prompt": "one"}, row, {"prompt": "two"})
    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert message in bad.message
    assert [job.prompt for job in (before, after) if isinstance(job, Job)] == ["one", "two"]


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes('a cat\r\n\n  {"prompt": 1}\n\xff\nein Käfer\n'.encode().replace(b"\xc3\xbf", b"\xff"))
    jobs = read(path)
    assert [job.prompt for job in jobs if isinstance(job, Job)] == ["a cat", '{"prompt": 1}', "ein Käfer"]
    assert [bad.number for bad in jobs if isinstance(bad, BadLine)] == [4]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "jobs.parquet"
    table = pyarrow.table({"prompt": ["a cat", None, "a dog"], "seed": [1, 2, None], "steps": [None, 3, 4]})
    parquet.write_table(table, path)
    cat, bad, dog = read(path)
    assert cat == replace(DEFAULTS, prompt="a cat", seed=1)
    assert bad == BadLine(number=2, message="has no prompt")
    assert dog == replace(DEFAULTS, prompt="a dog", num_inference_steps=4)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"the jobs .* cannot be read"):
        read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the jobs .*none.jsonl cannot be read: No such file or directory"):
        read(tmp_path / "none.jsonl")


def copied_model(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(zoo.folder("shapes-wan"), tmp_path / name))


def test_another_model_or_setting_is_another_name(tmp_path: Path) -> None:
    model, same = copied_model(tmp_path, "model"), copied_model(tmp_path, "elsewhere")
    batch = Batch.of(str(model), "hindsight", {})
    assert Batch.of(str(same), "hindsight", {}).key == batch.key
    assert Batch.of("shapes-wan", "hindsight", {}).key == batch.key
    assert Batch.of(str(model), "hindsight", {"error": 0.01}).key != batch.key
    assert Batch.of(str(model), "mixcache", {}).key != batch.key
    assert Batch.of(str(model), "hindsight", {}, "bfloat16").key != batch.key
    weights = next(model.rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert Batch.of(str(model), "hindsight", {}).key != batch.key
    profile = tmp_path / "profile.json"
    keys = set()
    for text in ("one", "two"):
        profile.write_text(text)
        keys.add(Batch.of("shapes-wan", "hold", {"speedup": 2.0, "profile": str(profile)}).key)
    assert len(keys) == 2


def test_a_folder_of_another_batch_or_of_none(tmp_path: Path) -> None:
    batch = Batch.of("shapes-wan", "hindsight", {})
    for _ in range(2):
        Folder.open(tmp_path / "out", batch, {"num_inference_steps": 20}).close()
    with pytest.raises(ValueError, match=r"is of a batch with another num_inference_steps \(20, not 30\); --out names"):
        Folder.open(tmp_path / "out", batch, {"num_inference_steps": 30})
    with pytest.raises(ValueError, match=r'is of a batch with another policy \("hindsight", not "mixcache"\)'):
        Folder.open(tmp_path / "out", Batch.of("shapes-wan", "mixcache", {}), {"num_inference_steps": 20})
    with pytest.raises(ValueError, match=r'with another model \("shapes-wan", not "shapes-hunyuan"\)'):
        Folder.open(tmp_path / "out", Batch.of("shapes-hunyuan", "hindsight", {}), {"num_inference_steps": 20})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ValueError, match=r"photos is no batch's folder: cat.jpg is in it; --out names another"):
        Folder.open(tmp_path / "photos", batch, {})
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the folder .*file cannot be written"):
        Folder.open(tmp_path / "file", batch, {})
