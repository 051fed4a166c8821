"""The parameters of the commands, made of the options of the verbs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from ramrs import options
from ramrs.errors import spell

if TYPE_CHECKING:
    from ramrs.cli.output import Screen

__all__ = ["command", "flag"]


def flag(name: str, value: str | None) -> str:
    """Spell an option as the command line does: ``--min-bits 2``."""
    name = "bits" if name == "uniform" else name.replace("_", "-")
    if value == "false":
        return f"--no-{name}"
    return f"--{name}" if value in (None, "true") else f"--{name} {value}"


def _parameter(field: options.Field) -> inspect.Parameter:
    """Make the parameter of an option."""
    option, default = field.option, field.default
    name = flag(field.name, None)
    spelling = f"{name}/{flag(field.name, 'false')}" if default is True or field.type == bool | None else name
    default = list(default) if isinstance(default, tuple) else default
    made = typer.Option(
        *sorted([spelling, *option.flags], key=lambda flag: flag.startswith("--")),  # -j before --threads
        help=spell(option.help, flag),
        min=option.least,
        metavar=option.metavar,
        hidden=option.hidden,
        show_default=default not in (None, [], False),
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, kind, default=default, annotation=Annotated[option.cli or field.type, made])


def _switch(name: str, help: str, *flags: str) -> inspect.Parameter:  # noqa: A002
    annotation = Annotated[bool, typer.Option(flag(name, None), *flags, help=help)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)


_OUTPUT = [
    _switch("json", "Print the result as JSON."),
    _switch("quiet", "Print no progress, warnings or hints.", "-q"),
]
_NO_PROGRESS = _switch("no_progress", "Print no progress bar.")


class _Command(typer.core.TyperCommand):
    """A command that knows whether errors are JSON even where its arguments do not parse."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException:
            if not ctx.resilient_parsing:
                lenient = self.make_context(ctx.info_name, given, resilient_parsing=True)
                ctx.obj.as_json = bool(lenient.params.get("json"))
            raise


def command(
    app: typer.Typer, kind: type, *, name: str | None = None, has_progress: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function, with the options of ``kind`` as parameters.

    The function gets the :class:`~ramrs.cli.output.Screen`, its own parameters, and the options as ``options=``.
    """

    def decorated(function: Callable[..., None]) -> Callable[..., None]:
        fields = list(options.fields(kind))

        def run(context: typer.Context, json: bool, quiet: bool, no_progress: bool = True, **given: Any) -> None:  # noqa: ANN401
            screen: Screen = context.obj
            screen.as_json, screen.quiet, screen.has_bar = json, quiet, not no_progress
            values = {field.name: given.pop(field.name) for field in fields}
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            function(screen, options=values, **given)

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        own = [each for each in own if each.name != "options"]
        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        made = [*(_parameter(field) for field in fields), *_OUTPUT, *([_NO_PROGRESS] if has_progress else [])]
        run.__signature__ = inspect.Signature([context, *own, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        run.__doc__ = function.__doc__
        app.command(name or function.__name__, cls=_Command)(run)
        return function

    return decorated
