"""anybit verify: whether files are still what was saved."""

from __future__ import annotations

from dataclasses import asdict

import click

from anybit.cli import options
from anybit.cli.progress import Reporter


@click.command(
    "verify",
    short_help="Check a saved model against its digests.",
    epilog="Example: anybit verify OUT",
)
@click.argument("path", metavar="DIR")
@options.json_option
@options.progress_option
def command(path: str, as_json: bool, no_progress: bool) -> None:
    """Check every file of DIR against the sizes and SHA-256 of its manifest.json, and the structure of its tensor files.

    A directory of another tool, or a single .safetensors or .gguf file, has no digests: then the structure alone is checked, and the answer
    says so. Exit code 0: in order; 4: damaged, incomplete or changed, with the first file that is.
    """
    from anybit.io.verify import total_bytes, verify
    from anybit.model import load

    with Reporter(enabled=not no_progress) as progress:
        step = progress.stage("verify", total_bytes(path))
        found = verify(path, step)
    if found.kind == "anybit":
        load(path)  # formats, layouts and shapes fit each other and the model's description
    if as_json:
        options.print_json(asdict(found))
        return
    from anybit.cli.commands.inspect import printable
    from anybit.report.table import facts, size

    digests = f"{found.files} files, {size(found.nbytes)}: in order" if found.digest else "none to compare with; structure alone"
    pairs = [("kind", found.kind), ("digests", digests), ("tensors", f"{found.tensors}, structure in order")]
    if found.digest:
        pairs.append(("digest", found.digest))
    if found.unlisted:
        pairs.append(("not listed", ", ".join(map(printable, found.unlisted))))
    facts(pairs)
