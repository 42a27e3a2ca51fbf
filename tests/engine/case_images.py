"""What is one image and what is not: by its bytes, wherever they come from."""

import http.server
import threading

import pictures
import told
from pictures import part, text
from stack import BLOCK_TOKENS


class Pages:
    """A web server of pictures on this host, whose bytes may change."""

    def __init__(self):
        self.files = {}
        self.asked = 0
        pages = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                pages.asked += 1
                body = pages.files[self.path]
                self.send_response(200)
                self.send_header("content-type", "image/png")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.allowed = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path):
        return f"http://{self.allowed}{path}"


class Scene:
    """A stack, and the row that its requests are counted in."""

    def __init__(self, row, stack):
        self.row = row
        self.stack = stack

    def body(self, *parts):
        """A chat of one turn."""
        return {
            "model": self.stack.model_name,
            "messages": [{"role": "user", "content": list(parts)}],
            "max_tokens": 2,
            "temperature": 0,
        }

    def ask(self, *parts):
        """Sends one turn, whose prediction must hold."""
        answered = self.stack.ask(self.body(*parts))
        self.row.compare(answered)
        return answered

    def overlaps(self, what, answered, blocks):
        self.row.require(
            answered.overlap_blocks == blocks,
            f"{what}: {blocks} blocks were to overlap\n{answered.story()}",
        )

    def image_starts(self, *parts):
        """Where the images begin in a turn's prompt, as the engine tokenises it."""
        address = self.stack.address(sorted(self.stack.serving())[0])
        ids = told.engine_ids(address, self.body(*parts))
        pad = self.stack.image_token
        return [at for at, token in enumerate(ids) if token == pad != ids[at - 1]]

    def before_image(self, *parts, number=0):
        """The full blocks of a turn's prompt before one of its images."""
        return self.image_starts(*parts)[number] // BLOCK_TOKENS


def all_blocks(answered):
    """What a cache can answer of a prompt: not its last token."""
    return (answered.prompt_tokens - 1) // BLOCK_TOKENS


def identity(row, stack):
    """One image twice, two images, other places."""
    scene = Scene(row, stack)
    cat, dog = (part(pictures.picture(320, 240, seed)) for seed in ("cat", "dog"))
    first = scene.ask(cat, text("one"))
    before = scene.before_image(cat, text("one"))
    row.require(first.overlap_blocks <= before, f"a new image overlaps\n{first.story()}")
    scene.overlaps("the same image again", scene.ask(cat, text("one")), all_blocks(first))
    scene.overlaps("another image", scene.ask(dog, text("one")), before)
    pushed = text("a few words that push the image into other blocks of the prompt, by far")
    scene.overlaps("another place", scene.ask(pushed, cat), before)
    second = scene.before_image(cat, dog, text("two"), number=1)
    both = scene.ask(cat, dog, text("two"))
    scene.overlaps("a second image", both, second)
    scene.overlaps("both again", scene.ask(cat, dog, text("two")), all_blocks(both))
    scene.overlaps("both swapped", scene.ask(dog, cat, text("two")), second)
    scene.overlaps("one image twice", scene.ask(cat, cat, text("two")), second)


def small_images(row, stack):
    """Two images in one block: each of them, and their order, is part of its hash."""
    scene = Scene(row, stack)
    red, green, blue = (part(pictures.picture(40, 40, seed)) for seed in ("r", "g", "b"))
    lead = text(lead_into_one_block(scene, red, green))
    first = scene.ask(lead, red, green, text("small"))
    again = scene.ask(lead, red, green, text("small"))
    scene.overlaps("both again", again, all_blocks(first))
    before = scene.before_image(lead, red, green, text("small"))
    for what, pair in (
        ("swapped", (green, red)),
        ("another second", (red, blue)),
        ("another first", (blue, green)),
        ("one twice", (red, red)),
    ):
        scene.overlaps(what, scene.ask(lead, *pair, text("small")), before)


def lead_into_one_block(scene, *images):
    """A text before two small images that puts both into one block."""
    for letters in range(2 * BLOCK_TOKENS):
        lead = "x" * letters + "."
        first, second = scene.image_starts(text(lead), *images, text("small"))
        if first // BLOCK_TOKENS == (second + second - first - 2) // BLOCK_TOKENS:
            return lead
    raise AssertionError("no text puts both images into one block")


def formats(row, stack):
    """One picture in two formats is two images: what is cached is what was made of the bytes."""
    scene = Scene(row, stack)
    drawn = pictures.drawn(300, 300, "formats")
    png, jpeg = (part(pictures.data_uri(pictures.encoded(drawn, k), k)) for k in ("PNG", "JPEG"))
    first = scene.ask(png)
    other = scene.ask(jpeg)
    scene.overlaps("a JPEG of the same picture", other, scene.before_image(jpeg))
    row.require(first.prompt_tokens == other.prompt_tokens, "one size has one number of tokens")


def places(row, stack):
    """The same bytes by URL and inside the request are one image."""
    scene, pages = Scene(row, stack), stack.site.pages
    for asked, size in enumerate(((200, 200, 5), (420, 300, 6)), 1):
        file = pictures.encoded(pictures.drawn(*size))
        pages.files[f"/{asked}"] = file
        inline, by_url = part(pictures.data_uri(file)), part(pages.url(f"/{asked}"))
        pair = (inline, by_url) if asked == 1 else (by_url, inline)
        first, second = (scene.ask(image, text("where")) for image in pair)
        scene.overlaps("the first way", first, scene.before_image(inline, text("where")))
        scene.overlaps("the other way", second, all_blocks(second))
        row.require(pages.asked >= asked, f"the server was asked {pages.asked} times")


def changed_page(row, stack):
    """New bytes at a URL are a new image, and it is the new image that is answered."""
    scene, pages = Scene(row, stack), stack.site.pages
    old, new = (pictures.encoded(pictures.drawn(*size)) for size in ((210, 190, 7), (430, 310, 8)))
    pages.files["/changes"] = old
    by_url, words = part(pages.url("/changes")), text("what changed")
    first = scene.ask(by_url, words)
    scene.overlaps("the old bytes again", scene.ask(by_url, words), all_blocks(first))
    pages.files["/changes"] = new
    changed = scene.ask(by_url, words)
    inline = part(pictures.data_uri(new))
    scene.overlaps("new bytes", changed, scene.before_image(inline, words))
    engine = told.engine_ids(stack.address(changed.worker), scene.body(inline, words))
    row.require(
        changed.prompt_tokens == len(engine) != first.prompt_tokens,
        f"{first.prompt_tokens} prompt tokens became {changed.prompt_tokens}, not {len(engine)}",
    )
