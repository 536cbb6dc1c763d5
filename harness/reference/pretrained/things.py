"""The catalogue of things that the pictures show: emoji, name, kind, and facts that the questions ask about.

    THINGS["cow"].gives, [t.name for t in THINGS.values() if t.fly]

A word alone on a line is the kind of what follows. An entry: emoji, name, size (1 fits a hand, 2 an arm, 3 as large as
a person, 4 as a car, 5 as a house), then facts. A fact that is arguable (does a chicken fly?) is left out with `fly?`,
and no question asks about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

TABLE = """
animal
🐕 dog 2 legs=4 | 🐈 cat 2 legs=4 | 🐁 mouse 1 legs=4 | 🐇 rabbit 2 legs=4 | 🦊 fox 2 legs=4
🐻 bear 3 legs=4 home=forest | 🐼 panda 3 legs=4 home=forest | 🐨 koala 2 legs=4 home=forest | 🐅 tiger 3 legs=4
🦁 lion 3 legs=4 | 🐄 cow 4 legs=4 gives=milk home=farm | 🐖 pig 3 legs=4 home=farm | 🐸 frog 1 legs=4 home=pond
🐒 monkey 2 | 🐔 chicken 2 legs=2 gives=eggs home=farm fly? | 🐧 penguin 2 legs=2
🦆 duck 2 legs=2 fly | 🦅 eagle 2 legs=2 fly | 🦉 owl 2 legs=2 fly home=forest | 🦇 bat 1 fly
🐺 wolf 3 legs=4 home=forest | 🐎 horse 4 legs=4 home=farm | 🐝 bee 1 legs=6 fly gives=honey
🦋 butterfly 1 legs=6 fly | 🐌 snail 1 | 🐞 ladybug 1 legs=6 fly | 🐜 ant 1 legs=6 fly? | 🕷 spider 1 legs=8
🦂 scorpion 1 legs=8 home=desert | 🐢 turtle 2 legs=4 | 🐍 snake 2 legs=0 | 🦎 lizard 1 legs=4
🐙 octopus 2 home=sea | 🦐 shrimp 1 home=sea | 🦀 crab 1 home=sea | 🐟 fish 1 legs=0 fly?
🐬 dolphin 3 legs=0 home=sea | 🐳 whale 5 legs=0 home=sea | 🦈 shark 4 legs=0 home=sea | 🐊 crocodile 4 legs=4
🦓 zebra 4 legs=4 home=savanna | 🦍 gorilla 3 | 🐘 elephant 4 legs=4 home=savanna
🦏 rhino 4 legs=4 home=savanna | 🐪 camel 4 legs=4 home=desert | 🦒 giraffe 4 legs=4 home=savanna
🦘 kangaroo 3 | 🐑 sheep 3 legs=4 gives=wool home=farm | 🐐 goat 3 legs=4 gives=milk home=farm
🦌 deer 3 legs=4 home=forest | 🦃 turkey 2 legs=2 fly? | 🦚 peacock 2 legs=2 fly?
🦜 parrot 2 legs=2 fly | 🦢 swan 2 legs=2 fly | 🦩 flamingo 3 legs=2 fly
🐿 squirrel 1 legs=4 home=forest | 🦔 hedgehog 1 legs=4 | 🦥 sloth 2 | 🦭 seal 3
🦟 mosquito 1 legs=6 fly
fruit
🍎 apple 1 | 🍐 pear 1 | 🍋 lemon 1 | 🍌 banana 1 | 🍉 melon 2 | 🍇 grapes 1 | 🍓 strawberry 1 | 🍒 cherries 1
🍑 peach 1 | 🥭 mango 1 | 🍍 pineapple 2 | 🥥 coconut 1 | 🥝 kiwi 1
vegetable
🍆 eggplant 1 | 🥦 broccoli 1 | 🥒 cucumber 1 | 🌽 corn 1 | 🥕 carrot 1 | 🧅 onion 1 | 🥔 potato 1 | 🧄 garlic 1
food
🍞 bread 1 | 🥐 croissant 1 | 🥨 pretzel 1 | 🧀 cheese 1 | 🥚 egg 1 | 🥞 pancakes 1 | 🍔 burger 1 | 🍟 fries 1
🍕 pizza 1 | 🥪 sandwich 1 | 🌮 taco 1 | 🍣 sushi 1 | 🍩 donut 1 | 🍪 cookie 1 | 🎂 cake 2 | 🍫 chocolate 1
🍬 candy 1 | 🍿 popcorn 1 | 🥗 salad 1 | 🍜 noodles 1
drink
☕ coffee 1 | 🍷 wine 1 | 🍺 beer 1 | 🧃 juice 1
vehicle
🚗 car 4 wheels | 🚕 taxi 4 wheels | 🚌 bus 5 wheels | 🚑 ambulance 4 wheels | 🚜 tractor 4 wheels
🚲 bicycle 3 wheels | 🛵 scooter 3 wheels | 🏍 motorcycle 3 wheels | 🚂 train 5 wheels | ✈ plane 5 fly wheels?
🚁 helicopter 4 fly wheels? | 🚀 rocket 5 fly | ⛵ sailboat 4 | 🚢 ship 5 | 🚚 truck 5 wheels | 🛶 canoe 3
instrument
🎸 guitar 2 | 🎹 piano 3 | 🎺 trumpet 2 | 🎻 violin 2 | 🥁 drum 2 | 🎷 saxophone 2 | 🪗 accordion 2 | 🪕 banjo 2
tool
🔨 hammer 1 | 🪓 axe 2 | 🪛 screwdriver 1 | 🔧 wrench 1 | ✂ scissors 1 | 🪚 saw 2 | 🪜 ladder 3 | 🧹 broom 2
clothing
👖 jeans 2 | 👗 dress 2 | 🧦 socks 1 | 🧤 gloves 1 | 🧣 scarf 2 | 👟 shoe 1 | 👢 boot 2 | 👒 hat 2 | 👔 tie 2
🧥 coat 2
plant
🌵 cactus 2 | 🌲 tree 5 | 🌴 palm 5 | 🌹 rose 1 | 🌻 sunflower 2 | 🌷 tulip 1
building
🏠 house 5 | 🏰 castle 5 | ⛪ church 5 | 🏭 factory 5
furniture
🪑 chair 3 | 🛏 bed 3 | 🛋 sofa 3 | 🚪 door 3
device
📱 phone 1 | 💻 laptop 2 | 📷 camera 1 | 📺 television 2 | ⌚ watch 1 | ⏰ clock 1 | 💡 bulb 1
thing
☂ umbrella 2 | 🎁 gift 1 | 📖 book 1 | ✏ pencil 1 | 🔔 bell 1 | 🎈 balloon 1 fly? | 🪁 kite 2 fly | 🧸 teddy 2
🔑 key 1 | 🧲 magnet 1 | ⛺ tent 4 | 🪣 bucket 2 | 👑 crown 1 | 👓 glasses 1 | 💍 ring 1 | ⚓ anchor 3 | 🏆 trophy 2
🕯 candle 1 | 🏀 basketball 2 | ⚾ baseball 1 | 💎 diamond 1
sky
⭐ star 0 | ☀ sun 0 | 🌙 moon 0 | ☁ cloud 0 | 🌈 rainbow 0 | ❄ snowflake 0
"""

FOOD = ("fruit", "vegetable", "food")
UNEATABLE = ("vehicle", "instrument", "tool", "clothing", "building", "furniture", "device")
ASKED_KINDS = ("food", "animal", "drink", "vehicle", "instrument", "tool", "clothing", "plant", "building")
PLURAL_KINDS = {"animal": "animals", "fruit": "fruits", "vegetable": "vegetables", "vehicle": "vehicles"}
PLURAL_KINDS |= {"instrument": "instruments", "tool": "tools", "building": "buildings"}
# Names that have no plural here, or no article: grapes, bread.
ALIKE = frozenset(
    {"grapes", "cherries", "pancakes", "fries", "noodles", "scissors", "jeans", "socks", "gloves", "glasses"}
)


MASS = frozenset(
    {"bread", "broccoli", "corn", "garlic", "cheese", "sushi", "popcorn", "chocolate", "candy"}
    | {"coffee", "wine", "beer", "juice"}
)
# What a thing also is, or shows: a name for it that is not wrong, so nobody is asked whether that is there.
ALSO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("panda", "koala", "teddy"), ("bear",)),
    **dict.fromkeys(("house", "church", "castle", "bus"), ("door",)),
    **dict.fromkeys(("burger", "sandwich"), ("cheese", "bread")),
    "pizza": ("cheese",),
    "noodles": ("egg",),
    "cake": ("candle", "strawberry"),
    "shark": ("fish",),
    "taxi": ("car",),
    "scooter": ("motorcycle",),
    "rocket": ("star",),
    "palm": ("tree",),
    "boot": ("shoe",),
    "watch": ("clock",),
    "ring": ("diamond",),
}


@dataclass(frozen=True)
class Thing:
    """One kind of picture: what it shows and what is known about it. A fact that nobody should ask for is None."""

    emoji: str
    name: str
    kind: str
    size: int  # 0: not asked
    fly: bool | None = False
    wheels: bool | None = False
    legs: str = ""
    home: str = ""
    gives: str = ""

    @property
    def eat(self) -> bool | None:
        """Whether it is something to eat; None where people would argue."""
        return True if self.kind in FOOD else False if self.kind in UNEATABLE else None

    @property
    def animal(self) -> bool | None:
        """Whether it is an animal; None where people would argue."""
        return None if self.name == "teddy" else self.kind == "animal"

    @property
    def phrase(self) -> str:
        """With its article: a dog, an apple, grapes, bread."""
        if self.plural or self.name in MASS:
            return self.name
        return f"an {self.name}" if self.name[0] in "aeiou" else f"a {self.name}"

    @property
    def plural(self) -> bool:
        return self.name in ALIKE

    @property
    def several(self) -> str:
        """The plural."""
        if self.plural:
            return self.name
        odd = {"mouse": "mice", "wolf": "wolves", "scarf": "scarves", "potato": "potatoes", "mango": "mangoes"}
        odd |= {name: name for name in ("fish", "sheep", "deer", "shrimp")}
        if self.name in odd:
            return odd[self.name]
        if self.name.endswith(("s", "x", "ch", "sh")):
            return f"{self.name}es"
        if self.name.endswith("y") and self.name[-2] not in "aeiou":
            return f"{self.name[:-1]}ies"
        return f"{self.name}s"


def _parse(table: str) -> dict[str, Thing]:
    """The things of a table by name. A line without an emoji names the kind of the lines below it."""
    things, kind = {}, ""
    for line in table.strip().splitlines():
        if line.isascii():
            kind = line.strip() or kind
            continue
        for entry in line.split("|"):
            emoji, name, size, *facts = entry.split()
            given = {}
            for fact in facts:
                key, _, value = fact.partition("=")
                given[key.rstrip("?")] = None if key.endswith("?") else value or True
            things[name] = Thing(emoji, name, kind, int(size), **given)
    return things


THINGS = _parse(TABLE)
NAMES = tuple(THINGS)


def _digest(text: str) -> int:
    return int(sha256(text.encode()).hexdigest(), 16)


# A fifth of the things meets every other thing, and every colour, in one half of the splits only: what validation and
# dev show of them side by side was never seen together in training.
RESERVED = frozenset(sorted(NAMES, key=_digest)[: len(NAMES) // 5])


def may_meet(first: str, second: str, *, training: bool) -> bool:
    """Whether two things (or a thing and the colour under or behind it) may be in one picture of a split."""
    if first not in RESERVED and second not in RESERVED:
        return True
    return (_digest(" ".join(sorted((first, second)))) % 2 == 0) == training
