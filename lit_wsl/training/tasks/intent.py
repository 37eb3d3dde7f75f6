"""Which command a sentence gives a house, sampled from the templates of Home Assistant."""

import json
import logging
import random
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_wsl.errors import DataError
from lit_wsl.training.tasks.splits import SEED, split_ranks, uniform_hash
from lit_wsl.training.tasks.task import Row, Source, TextTask

if TYPE_CHECKING:
    from hassil.intents import IntentData, Intents

logger = logging.getLogger(__name__)

_SOURCE = Source(
    package="home-assistant-intents",
    version="2026.10.27",
    filename="home_assistant_intents-2026.10.27-py3-none-any.whl",
    sha256="256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40",
)
_TEMPLATES = "home_assistant_intents/data/en.json"
_DRAWS = 480

# Names that a household would give; the templates leave these lists open.
_WORDS: dict[str, tuple[str, ...]] = {
    "area": (
        "kitchen", "living room", "bedroom", "bathroom", "office", "garage", "hallway", "dining room",
        "nursery", "guest room", "basement", "attic", "laundry room", "study",
    ),
    "floor": ("first floor", "ground floor", "second floor", "upstairs", "downstairs", "top floor"),
    "message": ("dinner is ready", "time to leave", "the guests are here", "good night everyone"),
    "search_query": (
        "queen", "bohemian rhapsody", "miles davis", "morning jazz", "abbey road", "the daily news",
        "star wars", "workout mix", "taylor swift", "planet earth", "beethoven", "nina simone",
    ),
    "shopping_list_item": ("milk", "eggs", "bread", "apples", "olive oil", "coffee", "paper towels"),
    "timer_command": (
        "turn off the lights", "open the garage door", "lock the front door", "turn on the fan",
        "close the blinds", "start the vacuum",
    ),
    "timer_name": ("pizza", "egg", "laundry", "tea", "pasta", "workout", "nap", "bread", "chicken", "homework"),
    "todo_list_item": ("call mom", "pay rent", "water the plants", "book a dentist", "fix the sink"),
    "zone": ("home", "work", "school", "the gym", "the office"),
}  # fmt: skip
_DEVICES: dict[str, tuple[str, ...]] = {
    "binary_sensor": ("front door sensor", "motion detector", "back window", "patio door"),
    "button": ("doorbell button", "restart button"),
    "climate": ("thermostat", "air conditioner", "heat pump", "hallway thermostat"),
    "cover": ("garage door", "left curtain", "bedroom blinds", "patio shutter", "front gate"),
    "fan": ("ceiling fan", "desk fan", "tower fan", "bathroom fan"),
    "input_boolean": ("guest mode", "vacation mode"),
    "input_button": ("party button",),
    "lawn_mower": ("lawn mower", "mowing robot", "garden mower", "backyard mower"),
    "light": ("bedside lamp", "floor lamp", "desk lamp", "porch light", "chandelier", "reading light"),
    "lock": ("front door lock", "back door", "side gate", "garage lock"),
    "media_player": ("tv", "kitchen speaker", "soundbar", "living room tv", "stereo", "bedroom radio"),
    "person": ("alice", "bob", "maria", "james"),
    "scene": ("movie night", "bright morning", "dinner party"),
    "script": ("bedtime routine", "wake up routine"),
    "sensor": ("outdoor temperature", "humidity sensor", "power meter", "battery level"),
    "switch": ("coffee maker", "heater", "christmas tree", "kettle"),
    "todo": ("chores list", "groceries list", "weekend list"),
    "vacuum": ("robot vacuum", "roomba", "vacuum cleaner", "dusty"),
    "valve": ("water valve", "sprinkler valve", "gas valve"),
    "weather": ("london", "berlin", "paris", "new york", "the cabin"),
}


@dataclass(frozen=True)
class _Sampler:
    """Draws sentences from template expressions."""

    intents: "Intents"
    rng: random.Random
    names: tuple[str, ...]

    def sentence(self, expression: object) -> str:
        """One sentence of the expression, words apart by single spaces."""
        return " ".join(self._draw(expression).split())

    def _draw(self, expression: object) -> str:
        from hassil.expression import Alternative, Group, ListReference, Permutation, RuleReference, TextChunk

        if isinstance(expression, TextChunk):
            return expression.original_text
        if isinstance(expression, RuleReference):
            return self._draw(self.intents.expansion_rules[expression.rule_name].expression)
        if isinstance(expression, ListReference):
            return self._value(expression.list_name)
        if isinstance(expression, Alternative):
            return self._draw(self.rng.choice(expression.items))
        if isinstance(expression, Group):
            items = list(expression.items)
            if isinstance(expression, Permutation):
                self.rng.shuffle(items)
            return "".join(self._draw(item) for item in items)
        raise DataError(f"Unknown template part {type(expression).__name__}; install hassil 3.")

    def _value(self, list_name: str) -> str:
        from hassil.intents import RangeSlotList, TextSlotList

        if list_name == "name":
            return self.rng.choice(self.names)
        if list_name in _WORDS:
            return self.rng.choice(_WORDS[list_name])
        values = self.intents.slot_lists.get(list_name)
        if isinstance(values, RangeSlotList):
            return str(self.rng.randrange(values.start, values.stop + 1, values.step))
        if isinstance(values, TextSlotList):
            return self._draw(self.rng.choice(values.values).text_in)
        raise DataError(f"No words for the list {list_name!r} of the intent templates.")


def _names(block: "IntentData") -> tuple[str, ...]:
    """Names of the devices that a block of templates speaks about."""
    domains = sorted(block.domains & _DEVICES.keys()) or sorted(_DEVICES.keys() - {"person", "weather"})
    return tuple(name for domain in domains for name in _DEVICES[domain])


def _read_intents(archive: Path) -> "Intents":
    try:
        from hassil.intents import Intents
    except ImportError as error:
        raise DataError("The task 'intent' needs hassil; run `pip install 'lit-wsl[demo]'`.") from error
    with zipfile.ZipFile(archive) as wheel:
        return Intents.from_dict(json.loads(wheel.read(_TEMPLATES)))


def _templates(intents: "Intents", name: str) -> list[tuple[str, "IntentData"]]:
    """Templates of an intent with the block each stands in, in an order fixed by hash."""
    found = [(text, block) for block in intents.intents[name].data for text in block.sentence_texts]
    return sorted(found, key=lambda entry: uniform_hash(f"{name}:{entry[0]}"))


def _sample_class(intents: "Intents", label: str) -> Iterator[Row]:
    from hassil.parse_expression import parse_sentence

    names = _JOINED.get(label, (f"Hass{label}",))
    templates = [template for name in names for template in _templates(intents, name)]
    draws = max(4, _DRAWS // len(templates))
    for (text, block), split in zip(templates, split_ranks(len(templates)), strict=True):
        sampler = _Sampler(intents, random.Random(f"{SEED}:{label}:{text}"), _names(block))
        expression = parse_sentence(text).expression
        for _ in range(draws):
            yield Row(sampler.sentence(expression), label, split)


def _extract(archive: Path) -> Iterator[Row]:
    intents = _read_intents(archive)
    for label in _PROMPTS:
        yield from _sample_class(intents, label)


# A class needs three templates that give many sentences; these two intents have them only together.
_JOINED = {"ListAddItem": ("HassListAddItem", "HassShoppingListAddItem")}

_PROMPTS: Mapping[str, str] = {
    "CancelAllTimers": "cancel all timers",
    "CancelTimer": "cancel the timer",
    "ClimateGetTemperature": "what is the temperature inside",
    "ClimateSetFanMode": "set the fan mode to auto",
    "ClimateSetTemperature": "set the temperature to 20 degrees",
    "DecreaseTimer": "take five minutes off the timer",
    "FanSetSpeed": "set the fan speed to 50 percent",
    "GetState": "is the door open, are the lights on",
    "GetWeather": "what is the weather like",
    "IncreaseTimer": "add five minutes to the timer",
    "LawnMowerDock": "send the lawn mower back to its dock",
    "LightSet": "set the brightness and color of the lights",
    "ListAddItem": "add bread to my shopping list",
    "MediaNext": "skip to the next song",
    "MediaPause": "pause the music",
    "MediaPlayerMute": "mute the speaker",
    "MediaPlayerUnmute": "unmute the speaker",
    "MediaPrevious": "go back to the previous song",
    "MediaSearchAndPlay": "play an album by this artist",
    "MediaUnpause": "resume the music",
    "PauseTimer": "pause the timer",
    "SetPosition": "set the curtain position to 50 percent",
    "SetVolume": "set the volume to 50 percent",
    "SetVolumeRelative": "turn the volume up or down",
    "StartTimer": "start a timer for ten minutes",
    "TimerStatus": "how much time is left on the timer",
    "TurnOff": "turn off the lights",
    "TurnOn": "turn on the lights",
    "UnpauseTimer": "resume the timer",
    "VacuumCleanArea": "vacuum the kitchen",
}

INTENT = TextTask(name="intent", prompts=dict(_PROMPTS), source=_SOURCE, extract=_extract)
