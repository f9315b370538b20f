"""Which pools of a cluster can run an action: NativeLink's rules for platform properties (v1.6.6: source)."""

from collections.abc import Mapping, Sequence

from .context import Context


def refusals(known: Context, asked: Mapping[str, str]) -> dict[str, list[str]]:
    """The properties that keep an action from each pool, by the pool's name; an empty list where it can run."""
    return {
        pool.name: [name for name, value in asked.items() if not _offers(known, pool.platform_properties, name, value)]
        for pool in known.pools
    }


def not_offered(known: Context, name: str, value: str) -> str:
    """Why no pool offers a property; empty if one does. Without a name it is the value of one that counts."""
    kinds = known.scheduler.properties
    if (not name or kinds.get(name) == "minimum") and not _is_number(value):
        counted = name or " or ".join(sorted(each for each, kind in kinds.items() if kind == "minimum"))
        return f"{counted}={value}: NativeLink wants a number, and tries without end"
    if any(_offers(known, pool.platform_properties, name, value) for pool in known.pools):
        return ""
    offered = sorted({texts[-1] for pool in known.pools if (texts := pool.platform_properties.get(name))})
    return f"{name}={value}: no pool offers it; they offer {', '.join(offered) or 'no such property'}"


def _offers(known: Context, offered: Mapping[str, Sequence[str]], name: str, value: str) -> bool:
    kind, texts = known.scheduler.properties.get(name), offered.get(name)
    has = texts[-1] if texts else None
    if kind == "ignore":
        return True
    if kind == "minimum":
        return has is not None and _is_number(value) and int(has) >= int(value)
    if kind == "priority":
        return has is not None
    if kind is None and has is None:
        return known.version.undeclared_properties
    return has == value


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdigit()
