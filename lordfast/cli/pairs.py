"""``lordfast pairs KIND``."""

from __future__ import annotations

from lordfast.cli.parse import parse, report, run_resumable

KINDS = ("inpainting", "super-resolution")


def run(args: list[str]) -> None:
    """Parse and make pairs."""
    if not args or args[0].startswith("-"):
        print(
            "usage: lordfast pairs KIND --images DIR --out DIR [options]\n\n"
            "kinds:\n"
            "  inpainting        images, random masks, and masked images\n"
            "  super-resolution  images and their low-resolution twins\n\n"
            "lordfast pairs KIND --help lists the options."
        )
        if args and args[0] in ("-h", "--help"):
            return
        raise ValueError(f"pairs: expected a kind ({', '.join(KINDS)}) first")
    kind, *rest = args
    command = f"pairs {kind}"
    if kind == "inpainting":
        from lordfast.training.inpainting import InpaintingConfig, run_inpainting

        masks = parse(InpaintingConfig, command, rest)
        summary = run_resumable(command, masks, lambda: run_inpainting(masks))
        out = masks.out
    elif kind == "super-resolution":
        from lordfast.training.super_resolution import SuperResolutionConfig, run_super_resolution

        twins = parse(SuperResolutionConfig, command, rest)
        summary = run_resumable(command, twins, lambda: run_super_resolution(twins))
        out = twins.out
    else:
        raise ValueError(f"pairs: expected one of {', '.join(KINDS)}, got {kind!r}")
    report(f"{summary['pairs']} pairs of {summary['images']} images: {out}")
