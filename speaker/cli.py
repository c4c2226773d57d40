"""The command ``speaker``: it says what it will do and, for now, that it cannot do it."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="speaker",
    help="Speaker verification and identification (not built yet: every command below says so).",
    no_args_is_help=True,
    add_completion=False,
)

# What each command will do, as shown by `speaker --help`.
PLANNED = {
    "embed": "Turn recordings into speaker embeddings.",
    "verify": "Decide whether two recordings are of one speaker.",
    "score": "Score a list of trials.",
    "enroll": "Add a speaker to a gallery.",
    "identify": "Find a recording's speaker in a gallery.",
}


def _not_built(context: typer.Context) -> None:
    typer.echo(
        f"speaker: not built yet: `speaker {context.info_name}` comes with a later version; "
        "this one holds the codec, see `codec --help`",
        err=True,
    )
    raise typer.Exit(2)


# Arguments are taken as they come, so that the answer is the honest one and not a complaint about an option.
for _name, _help in PLANNED.items():
    app.command(_name, help=_help, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
        _not_built
    )


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
