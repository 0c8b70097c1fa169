"""``lordfast attack NAME``."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from lordfast.cli.choose import choose
from lordfast.cli.parse import parse, report, run_resumable
from lordfast.files import expand_user

if TYPE_CHECKING:
    from lordfast.evaluation.transfer import TransferConfig


def run(args: list[str]) -> None:
    """Parse and attack, or explain."""
    from lordfast.attacks.registry import ATTACKS
    from lordfast.attacks.run import run_attack

    kinds = {name: attack.summary for name, attack in ATTACKS.items()}
    more = "lordfast attack NAME --explain prints its rule, its budget in grey levels, its source and its presets."
    chosen = choose("attack", kinds, "--model MODEL --images DIR --out DIR", args, more)
    if chosen is None:
        return
    attack, rest = ATTACKS[chosen[0]], chosen[1]
    presets = {name: dict(preset.values) for name, preset in attack.presets.items()}
    command = f"attack {attack.name}"
    flags, rest = _transfer_flags(rest)
    if "--explain" in rest:
        from lordfast.attacks.explain import explain

        print(explain(attack, *_explained(attack.config, [word for word in rest if word != "--explain"], presets)))
        return
    config = parse(attack.config, command, rest, presets, TRANSFER)
    transfer = _transfer(attack.name, config, flags) if flags.to else None
    again = [
        *(["--share", config.share] if config.share else []),
        *(["--transfer-to", *flags.to] if flags.to else []),
        *(["--transfer-prompts", *flags.prompts] if flags.prompts else []),
    ]
    summary = run_resumable(command, config, lambda: run_attack(attack.name, config), again)
    budget = f"{summary['eps_grey_levels']:g} grey levels ({summary['norm']})"
    report(f"{summary['images']} images within {budget}: {config.out}")
    if summary["unchanged"] and summary["eps"]:
        report(f"{summary['unchanged']} of them did not change by a single grey level; a larger --eps would help")
    if transfer is not None:
        from lordfast.cli.transfer import measure

        measure(transfer)


TRANSFER = (
    "--transfer-to MODEL [MODEL ...] and --transfer-prompts TEXT [TEXT ...] also measure, when the attack is done, how "
    "far it disturbs image variation by these models, beside its own, and under these prompts: lordfast transfer with "
    "its defaults, into a folder called as --out with -transfer behind it."
)


def _transfer_flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("--transfer-to", dest="to", nargs="+", default=[])
    flags.add_argument("--transfer-prompts", dest="prompts", nargs="+", default=[])
    try:
        found, rest = flags.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(f"{str(error.argument_name).removeprefix('--')}: {error.message}") from error
    found.to = [expand_user(word) for word in found.to]
    if found.prompts and not found.to:
        raise ValueError("transfer-prompts: came without transfer-to; expected at least one target model too")
    return found, rest


def _transfer(name: str, config: Any, flags: argparse.Namespace) -> TransferConfig:
    """What to measure when the attack is done, checked before it begins."""
    from lordfast.data.archives import names_archives
    from lordfast.diffusion import resolve_model
    from lordfast.evaluation.transfer import TransferConfig
    from lordfast.evaluation.transfer.config import check_request, parse_named
    from lordfast.training.run import RunFolder

    processes = os.environ.get("WORLD_SIZE", "1")
    unfit = {
        f"{processes} processes": processes != "1",
        f"share {config.share}": config.share is not None,
        f"the archives {config.images}": names_archives(config.images),
    }
    for got, is_so in unfit.items():
        if is_so:
            raise ValueError(
                f"transfer-to: expected an attack of a whole folder by one process, got {got}; call lordfast transfer "
                "when it is done"
            )
    out = config.out.with_name(f"{config.out.name}-transfer")
    transfer = TransferConfig(
        out=out,
        originals=config.images,
        attacked=(f"{name}={config.out}",),
        to=tuple(dict.fromkeys([config.model, *flags.to])),
        prompts=tuple(flags.prompts),
        prompt=None if flags.prompts else config.prompt,
        resolution=config.resolution,
        seed=config.seed,
        device=config.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
        skip_bad=config.skip_bad,
        cache_dir=config.cache_dir,
        resume=config.resume and (out / "config.yaml").exists(),
        overwrite=config.overwrite,
    )
    check_request(transfer)
    RunFolder.inspect(transfer, "transfer")
    for model in parse_named(transfer.to, "transfer-to").values():
        resolve_model(model)
    return transfer


def _explained(cls: type[Any], words: list[str], presets: dict[str, dict[str, Any]]) -> tuple[Any, str | None]:
    """The config that `words` ask for, without what only a run needs, and the preset's name."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    named, _ = early.parse_known_args(words)
    # Later flags win, so these only stand in for what is not there.
    return parse(cls, "attack", ["--model", "demo", "--images", ".", "--out", ".", *words], presets), named.preset
