"""Values as they stand in requests, arguments and documents: people, accounts, dates, paths; drawn, never the same few.

None of it is anybody's: names are put together, domains end in names that are reserved for examples, account numbers are
of the right shape only.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from datetime import date, timedelta

FIRST = (
    "Anna Amir Bea Carlos Chen Chiara Daniel Dilek Elif Emeka Emil Farah Felix Fiona Gabriel Greta Hanna Hugo Ines Ivan "
    "Jamal Jana Jonas Joon Kai Karim Kofi Lena Leo Lin Lucia Lukas Maja Marek Maria Mateo Mei Mira Nadia Nils Noor Olga "
    "Omar Paula Pedro Petra Priya Rahul Rosa Samir Sara Sofia Tariq Tess Tomas Uma Vera Viktor Wei Yara Yusuf Zoe"
).split()
LAST = (
    "Abara Ahlgren Almeida Bakker Baumann Bianchi Castro Chandra Costa Delacroix Demir Duarte Eriksen Esposito Falk Ferreira "
    "Fischer Fontana Garnier Haddad Hansen Horvat Ito Jansen Kamau Keller Khan Kowalski Larsen Lehmann Lindqvist Lopes "
    "Mahler Marchetti Mensah Moreau Nakamura Navarro Novak Okafor Olsen Park Petrov Quist Ricci Rossi Santos Schmitt Sharma "
    "Silva Suzuki Tanaka Torres Ueda Varga Vogel Wagner Winter Yilmaz Zhang Zimmermann"
).split()
_DOMAINS = (
    "{w}.example {w}-{v}.example {w}{v}.example mail.{w}.example {w}.test {w}-group.example {w}works.example {v}.example"
).split()
WORDS = (
    "alder amber anchor arbor aspen atlas aurora basalt beacon birch bramble bridge canyon cedar cobalt comet copper coral "
    "crane delta ember falcon fern garnet glacier granite harbor hazel heron indigo ivory jasper juniper kestrel lagoon "
    "lantern larch lumen maple marble meadow mistral nimbus north oak onyx opal orchid otter pebble pine quarry quill raven "
    "ridge river rowan saffron sage sierra slate sparrow summit tamarind thistle timber topaz tundra umber velvet vesper "
    "violet walnut willow wren yarrow zephyr"
).split()
CITIES = (
    "Aarhus,Antwerp,Bergen,Bilbao,Bologna,Bordeaux,Bratislava,Brno,Cork,Cusco,Dresden,Durban,Freiburg,Gdansk,Ghent,Graz,"
    "Halifax,Hobart,Innsbruck,Izmir,Jaipur,Kazan,Kigali,Krakow,Leeds,Leipzig,Linz,Ljubljana,Lyon,Malmö,Medellín,Montreal,"
    "Nantes,Nagoya,Odense,Oaxaca,Osaka,Pécs,Porto,Pune,Quito,Rabat,Riga,Rotterdam,Salvador,Sapporo,Sevilla,Split,Tainan,"
    "Tampere,Tartu,Trieste,Turin,Utrecht,Valencia,Vilnius,Wellington,Wrocław,Zagreb"
).split(",")
TOPICS = (
    "the quarterly budget,the roof repair,the spring newsletter,the onboarding of new colleagues,the warehouse move,"
    "the supplier contract,the school trip,the website relaunch,the audit,the holiday schedule,the printer lease,"
    "the choir rehearsal,the travel policy,the heating bill,the customer survey,the insurance claim,the staff party,"
    "the database migration,the trade fair,the parking permits,the press release,the garden project,the tax return,"
    "the dentist appointment,the rental agreement,the new logo,the price list,the book club,the security training,"
    "the photo archive,the delivery delays,the annual meeting,the membership fees,the recipe collection,the bike repair"
).split(",")
THINGS = (
    "standing desk,espresso machine,rain jacket,HDMI cable,desk lamp,hiking boots,air purifier,board game,office chair,"
    "water filter,phone case,trail map,camping stove,noise-cancelling headphones,paper shredder,bike helmet,toner cartridge,"
    "coffee beans,label printer,wall clock,monitor arm,yoga mat,sewing kit,power bank,garden hose,whiteboard,tea kettle"
).split(",")
_MONTHS = "January February March April May June July August September October November December".split()
_FOLDERS = (
    "documents notes reports invoices projects archive drafts backup shared finance clients photos exports".split()
)
_FILES = (
    "minutes plan overview contract offer summary budget letter list guide statement agenda schedule figures inventory "
    "checklist proposal protocol feedback slides"
).split()
_CHANNELS = (
    "general team-ops announcements support sales design releases facilities random-talk project-x hiring".split()
)


class Draw:
    """Draws values of named kinds.

    Args:
        rng: Decides what is drawn.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def __call__(self, kind: str) -> str | int | float:
        """A value of a kind, one of `KINDS`."""
        return KINDS[kind](self)

    def pick(self, kinds: str) -> str:
        """One word of some."""
        return self.rng.choice(kinds.split())

    def digits(self, count: int) -> str:
        """So many digits, the first of them not 0."""
        return str(self.rng.randint(1, 9)) + "".join(self.rng.choices(string.digits, k=count - 1))

    def letters(self, count: int) -> str:
        """So many capital letters and digits."""
        return "".join(self.rng.choices(string.ascii_uppercase + string.digits, k=count))

    def person(self) -> str:
        """First and last name."""
        return f"{self.rng.choice(FIRST)} {self.rng.choice(LAST)}"

    def domain(self) -> str:
        """Where mail goes and pages are."""
        return self.rng.choice(_DOMAINS).format(w=self.rng.choice(WORDS), v=self.rng.choice(WORDS))

    def address(self, name: str | None = None) -> str:
        """An e-mail address, of a person if one is named."""
        first, last = (name or self.person()).lower().split(" ", 1)
        last = last.replace(" ", "")
        form = self.rng.choice(("{f}.{l}", "{f}", "{f[0]}{l}", "{f}_{l}", "{l}", "{f}{n}"))
        return form.format(f=first, l=last, n=self.rng.randint(2, 99)) + "@" + self.domain()

    def iban(self) -> str:
        """An account number as Europe writes them; others are longer or shorter numbers."""
        country = self.pick("DE FR NL ES IT GB AT PL SE CH BE PT")
        number = self.digits(2) + self.rng.choice(("", self.letters(4))) + self.digits(14)
        plain = country + number
        if self.rng.random() < 0.2:
            return self.digits(self.rng.choice((8, 10, 12)))
        return " ".join(plain[i : i + 4] for i in range(0, len(plain), 4)) if self.rng.random() < 0.3 else plain

    def amount(self) -> int | float:
        """Money: whole or with cents, small or large."""
        whole = int(10 ** self.rng.uniform(0.8, 4))
        return whole if self.rng.random() < 0.4 else round(whole + self.rng.randint(5, 99) / 100, 2)

    def day(self) -> str:
        """A date, mostly as ISO writes it."""
        when = date(2024, 1, 1) + timedelta(days=self.rng.randrange(900))
        if self.rng.random() < 0.75:
            return when.isoformat()
        return self.rng.choice(
            (
                f"{when.day} {_MONTHS[when.month - 1]} {when.year}",
                f"{_MONTHS[when.month - 1]} {when.day}",
                f"{when.day:02}.{when.month:02}.{when.year}",
            )
        )

    def time(self) -> str:
        """A time of day."""
        return f"{self.rng.randint(7, 21):02}:{self.rng.choice((0, 0, 0, 15, 30, 30, 45)):02}"

    def path(self) -> str:
        """A file's path or name."""
        name = self.rng.choice(_FILES) + self.pick("- _") + self.rng.choice((*WORDS, *map(str, range(2021, 2027))))
        name += self.rng.choice((".txt", ".md", ".pdf", ".docx", ".csv", ".xlsx"))
        folder = self.folder()
        return self.rng.choice((name, name, f"{folder}/{name}"))

    def folder(self) -> str:
        """A folder's path."""
        top = self.rng.choice(_FOLDERS)
        return self.rng.choice(
            (top, f"/home/{self.rng.choice(FIRST).lower()}/{top}", f"{top}/{self.rng.choice(WORDS)}")
        )

    def number(self) -> str:
        """A number or code by which something is called."""
        form = self.rng.choice(("{d}", "{l}-{d}", "#{d}", "{l}{d}"))
        return form.format(d=self.digits(self.rng.randint(3, 6)), l=self.pick("A B INV TK ORD REF CS PR K DOC"))

    def url(self) -> str:
        """A page."""
        end = self.rng.choice(("", f"/{self.rng.choice(WORDS)}", f"/{self.rng.choice(_FILES)}/{self.digits(3)}"))
        return f"{self.rng.choice(('https://', 'https://www.', 'http://', ''))}{self.domain()}{end}"

    def phone(self) -> str:
        """A telephone number."""
        return f"+{self.rng.randint(20, 99)} {self.digits(3)} {self.digits(self.rng.choice((6, 7)))}"

    def password(self) -> str:
        """A password or key."""
        if self.rng.random() < 0.5:
            word = self.rng.choice(WORDS).title() + self.rng.choice("-_.!") + self.digits(4)
            return word + self.rng.choice(("", "!", "#", self.rng.choice(WORDS)))
        return self.pick("sk tok key pat") + "_" + "".join(self.rng.choices(string.ascii_letters + string.digits, k=20))

    def card(self) -> str:
        """A card's number."""
        return " ".join(self.digits(4) for _ in range(4))

    def street(self) -> str:
        """A street and a city."""
        kind = self.pick("Street Road Lane Avenue Square")
        return f"{self.rng.randint(1, 190)} {self.rng.choice(WORDS).title()} {kind}, {self.rng.choice(CITIES)}"

    def sentence(self) -> str:
        """Something a person writes to another."""
        topic, name, day = self.rng.choice(TOPICS), self.rng.choice(FIRST), self.day()
        return self.rng.choice(_SENTENCES).format(topic=topic, name=name, day=day, n=self.rng.randint(2, 60))


_SENTENCES = (
    "I am running {n} minutes late.",
    "The meeting about {topic} is moved to {day}.",
    "Thank you for your help with {topic}.",
    "We agreed on the second option for {topic}.",
    "{name} will take over {topic} next week.",
    "The figures for {topic} are attached.",
    "Could we talk about {topic} on {day}?",
    "Everything is ready for {topic}.",
    "{topic} will cost about {n} euros per person.",
    "I cannot make it on {day}, sorry.",
    "Happy birthday, {name}!",
    "There are {n} open points in {topic}.",
    "Lunch at the usual place?",
    "Congratulations on {topic}.",
    "The keys are with {name}.",
)

KINDS: Mapping[str, Callable[[Draw], str | int | float]] = {
    "person": Draw.person,
    "first": lambda draw: draw.rng.choice(FIRST),
    "address": Draw.address,
    "iban": Draw.iban,
    "amount": Draw.amount,
    "date": Draw.day,
    "time": Draw.time,
    "path": Draw.path,
    "folder": Draw.folder,
    "number": Draw.number,
    "url": Draw.url,
    "phone": Draw.phone,
    "password": Draw.password,
    "card": Draw.card,
    "street": Draw.street,
    "sentence": Draw.sentence,
    "city": lambda draw: draw.rng.choice(CITIES),
    "topic": lambda draw: draw.rng.choice(TOPICS).removeprefix("the "),
    "thing": lambda draw: draw.rng.choice(THINGS),
    "channel": lambda draw: draw.rng.choice(_CHANNELS),
    "count": lambda draw: draw.rng.randint(2, 12),
    "percent": lambda draw: draw.rng.randint(1, 100),
    "user": lambda draw: draw.rng.choice(FIRST).lower() + draw.rng.choice(("", str(draw.rng.randint(1, 99)))),
    "minutes": lambda draw: draw.rng.choice((15, 20, 30, 45, 60, 90, 120)),
    "word": lambda draw: draw.rng.choice(WORDS),
}
"""What can be drawn, by name."""
