"""Draw pictures of text, lines and shapes to train on beside photographs.

    python tools/draw_pictures.py FOLDER [--pages] [--count 48] [--side 512] [--seed 0]

Photographs hold few letters, ruled lines and flat areas with sharp borders; screens, diagrams and
comics hold little else. ``--pages``: nothing but text, of any of matplotlib's upright and slanted
fonts, narrow and wide, small above all, some of it softened as a scanner or a camera does.
Each picture is drawn four times as large and reduced by areas, as a good renderer does. The same
seed gives the same pictures with the same releases of Pillow and matplotlib.
"""

from __future__ import annotations

import argparse
import math
import random
import string
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

OVERSAMPLING = 4
FONTS = "DejaVuSans* DejaVuSerif* STIXGeneral* cmr10* cmss10* cmtt10*"
SMALLEST, LARGEST = 7.0, 40.0  # of a page's letters, in pixels
Colour = tuple[int, int, int]


def colour(draw: random.Random) -> Colour:
    """Mostly black, white and greys, else anything."""
    if draw.random() < 0.5:
        level = draw.choice((0, 0, 255, 255, draw.randrange(256)))
        return level, level, level
    return draw.randrange(256), draw.randrange(256), draw.randrange(256)


def text(canvas: ImageDraw.ImageDraw, draw: random.Random, side: int) -> None:
    size = round(side * math.exp(draw.uniform(math.log(0.015), math.log(0.12))))
    font = ImageFont.load_default(size)
    ink, left, top = colour(draw), draw.randrange(side), draw.randrange(side)
    for line in range(draw.randint(1, 8)):
        words = (
            "".join(draw.choices(string.ascii_letters, k=draw.randint(1, 9))) for _ in "123456"
        )
        numbers = "".join(draw.choices(string.digits + string.punctuation, k=draw.randint(0, 6)))
        place = (left - side // 3, top + line * size * 1.25)
        canvas.text(place, " ".join([*words, numbers]), fill=ink, font=font)


def rays(canvas: ImageDraw.ImageDraw, draw: random.Random, side: int) -> None:
    x, y, radius = draw.randrange(side), draw.randrange(side), draw.uniform(0.1, 0.5) * side
    number, ink, turn = draw.randint(6, 40), colour(draw), draw.uniform(0, 360)
    for index in range(number):
        start = turn + 360 * index / number
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.pieslice(box, start, start + 180 / number, fill=ink)


def stripes(canvas: ImageDraw.ImageDraw, draw: random.Random, side: int) -> None:
    angle, ink = draw.uniform(0, math.pi), colour(draw)
    step = side * math.exp(draw.uniform(math.log(0.006), math.log(0.08)))
    width = max(1, round(step * draw.uniform(0.15, 0.6)))
    x, y, reach = draw.randrange(side), draw.randrange(side), draw.uniform(0.1, 0.6) * side
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    for index in range(draw.randint(3, 30)):
        middle = (x + across[0] * step * index, y + across[1] * step * index)
        ends = [
            (middle[0] + s * reach * along[0], middle[1] + s * reach * along[1]) for s in (-1, 1)
        ]
        canvas.line(ends, fill=ink, width=width)


def polygon(canvas: ImageDraw.ImageDraw, draw: random.Random, side: int) -> None:
    x, y, radius = draw.randrange(side), draw.randrange(side), draw.uniform(0.03, 0.4) * side
    angles = sorted(draw.uniform(0, 2 * math.pi) for _ in range(draw.randint(3, 7)))
    corners = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    outline = colour(draw) if draw.random() < 0.5 else None
    width = draw.randint(1, max(1, side // 80))
    canvas.polygon(corners, fill=colour(draw), outline=outline, width=width)


def ellipse(canvas: ImageDraw.ImageDraw, draw: random.Random, side: int) -> None:
    x, y = draw.randrange(side), draw.randrange(side)
    wide, high = (draw.uniform(0.02, 0.3) * side for _ in "xy")
    fill = colour(draw) if draw.random() < 0.6 else None
    width = draw.randint(1, max(1, side // 60))
    box = (x - wide, y - high, x + wide, y + high)
    canvas.ellipse(box, fill=fill, outline=colour(draw), width=width)


def picture(side: int, seed: int) -> Image.Image:
    """One drawing, RGB, side x side pixels."""
    draw = random.Random(seed)
    large = side * OVERSAMPLING
    image = Image.new("RGB", (large, large), colour(draw))
    canvas = ImageDraw.Draw(image)
    for _ in range(draw.randint(20, 40)):
        draw.choice((text, text, rays, stripes, polygon, polygon, ellipse))(canvas, draw, large)
    return image.resize((side, side), Image.Resampling.BOX)


def fonts() -> list[Path]:
    """matplotlib's, but those without letters."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return sorted(file for name in FONTS.split() for file in folder.glob(f"{name}.ttf"))


def words(draw: random.Random) -> str:
    """A line of made-up ones: small letters, capitalised, all capitals or numbers."""
    line = []
    for _ in range(draw.randint(1, 12)):
        letters = draw.choices(string.ascii_lowercase, k=draw.randint(1, 10))
        word, form = "".join(letters), draw.random()
        if form > 0.9:
            word = "".join(draw.choices(string.digits + string.punctuation, k=draw.randint(1, 6)))
        line.append(word.upper() if form < 0.15 else word.capitalize() if form < 0.4 else word)
    return " ".join(line)


def paragraph(image: Image.Image, draw: random.Random, files: list[Path], paper: int) -> None:
    """Lines of text on ``image`` (grey), at times in a box of its own."""
    across, down = image.size
    size = OVERSAMPLING * math.exp(draw.uniform(math.log(SMALLEST), math.log(LARGEST)))
    font = ImageFont.truetype(str(draw.choice(files)), round(size))
    spacing, stretch = size * draw.uniform(1.0, 1.5), draw.uniform(0.6, 1.2)
    lines = [words(draw) for _ in range(draw.randint(1, 6))]
    width = math.ceil(max(font.getlength(line) for line in lines)) + round(size)
    mask = Image.new("L", (width, math.ceil(spacing * len(lines) + size)))
    canvas = ImageDraw.Draw(mask)
    for number, line in enumerate(lines):
        canvas.text((size / 2, size / 4 + number * spacing), line, fill=255, font=font)
    mask = mask.resize((max(1, round(width * stretch)), mask.height), Image.Resampling.BILINEAR)
    left, top = draw.randrange(-mask.width // 3, across), draw.randrange(-mask.height // 2, down)
    if draw.random() < 0.3:
        paper = draw.randrange(256)
        image.paste(paper, (left, top, left + mask.width, top + mask.height))
    # Faint or strong; seldom so near the paper's level that nothing is seen.
    ink = (paper + draw.choice((-1, 1)) * draw.randint(25, 255)) % 256
    image.paste(ink, (left, top), mask)


def page(side: int, seed: int, files: list[Path]) -> Image.Image:
    """Text alone, grey, side x side pixels."""
    draw = random.Random(seed)
    paper = draw.choice((0, 255, draw.randrange(256)))
    image = Image.new("L", (side * OVERSAMPLING,) * 2, paper)
    for _ in range(draw.randint(20, 40)):
        paragraph(image, draw, files, paper)
    if draw.random() < 0.5:
        softness = draw.uniform(0, 0.8) * OVERSAMPLING
        image = image.filter(ImageFilter.GaussianBlur(softness))
    return image.resize((side, side), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pages", action="store_true", help="text alone")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    files = fonts() if given.pages else []
    for index in range(given.count):
        seed = 1000 * given.seed + index
        image = page(given.side, seed, files) if given.pages else picture(given.side, seed)
        kind = "page" if given.pages else "drawing"
        image.save(given.folder / f"{kind}_{index:03}.png")


if __name__ == "__main__":
    main()
