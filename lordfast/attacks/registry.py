"""Every attack by its name: a new attack is one file and one word here."""

from __future__ import annotations

from lordfast.attacks import ace, ace_plus, aspl, feature, fsmg, mist, pgd, photoguard
from lordfast.attacks.protocol import Attack

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for family in (pgd, mist, photoguard, fsmg, aspl, ace, ace_plus, feature)
    for attack in family.ATTACKS
}


def find_attack(name: str) -> Attack:
    """The attack of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack: expected one of {', '.join(ATTACKS)}, got {name!r}")
    return ATTACKS[name]
