"""Writes the seeds of the fuzz targets and their dictionaries beside itself: `python3 handler/fuzz/seeds.py`.

A seed whose name begins with `taken` is accepted by its parser, one that begins with `refused` is not; the tests hold them to it.
Needs nothing but Python; the same seeds every time.
"""

import base64
import json
import math
import shutil
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).parent
# In every text that must not reach a log: `handler::fuzz` looks for it.
MARK = "Xylophon"

TASK = {
    "generation_id": 500, "style_id": 10, "lora_model_url": "s3://styles/models/a.safetensors",
    "prompt_tags": [MARK, "sea"], "artist_name": f"{MARK} Ada", "webhook_url": "http://api.example.org:8000/base",
}
FULL = TASK | {
    "seed": -7, "aspect_ratio": "1:2", "negative_prompt": f"{MARK} blur", "num_inference_steps": 150, "guidance_scale": 50,
    "scheduler": "euler", "karras_sigmas": True, "noise_source": "cpu", "prompt_weighting": "a1111", "lora_scale": -10,
    "long_prompt": True, "clip_skip": 11,
    "lora_weights": {"text_encoder": 0.5, "unet": {"down": 1, "mid": [2], "up": {"block_1": [1, 0.5, -1], "block_3": None}}},
    "loras": [{"lora_model_url": "s3://other/b", "scale": 0.5}], "num_images": 4, "output_format": "webp",
    "textual_inversions": [{"url": "s3://words/a", "token": "<cat-toy>"}],
    "signature": {"position": "top-left", "opacity": 255, "size": 0.25, "margin": 0.25}, "safety": "refuse",
    "image_url": "s3://uploads/sketches/a.png", "strength": 0.75,
    "created_at": "2026-11-25T14:00:00.5+01:00", "width": 264, "height": 328,
}
# One step beyond each limit of the contract's table.
BEYOND = {
    "generation_id": -1, "style_id": 2**63, "lora_model_url": f"s3://styles/../{MARK}", "prompt_tags": [MARK] * 101,
    "artist_name": MARK * 26, "webhook_url": f"ftp://{MARK}", "seed": -(2**63) - 1, "negative_prompt": MARK * 1251,
    "num_inference_steps": 151, "guidance_scale": 50.1, "scheduler": MARK, "karras_sigmas": MARK, "noise_source": MARK,
    "prompt_weighting": MARK, "long_prompt": MARK, "clip_skip": 12, "lora_scale": 10.1, "loras": [{"lora_model_url": "s3://other/b"}] * 8, "num_images": 5,
    "output_format": MARK, "signature": {"margin": 0.26}, "safety": MARK, "created_at": MARK,
    "textual_inversions": [{"url": "s3://words/a", "token": MARK * 13}], "width": 2056, "height": 56, "image_url": f"https://{MARK}",
    "lora_weights": {"unet": {"up": {"block_1": [1, MARK]}}},
}

# What the parser refuses and JSON Schema takes.
UNSAID = {
    "seed": 42.0, "prompt_tags": [MARK * 700, MARK * 700], "lora_model_url": "s3://styles/" + "\u00fc" * 600,
    "webhook_url": "http://[::1", "artist_name": f"{MARK} \ud83d",
}


def tasks():
    yield "taken-least", json.dumps(TASK)
    yield "taken-full", json.dumps(FULL, ensure_ascii=False)
    yield "taken-nulls", json.dumps(TASK | {name: None for name in FULL if name not in TASK})
    # Read inexactly, this scale was another number after it had been written again: fuzzing found it.
    yield "taken-odd-size", json.dumps(TASK | {"aspect_ratio": "16:9", "scheduler": "lcm", "lora_scale": 1e-305})
    for name, value in BEYOND.items():
        yield f"refused-{name}", json.dumps(TASK | {name: value})
    yield "refused-strength-alone", json.dumps(TASK | {"strength": 0.5})
    yield "refused-strength-above", json.dumps(TASK | {"image_url": "s3://uploads/a", "strength": 1.5})
    yield "taken-one-step", json.dumps(TASK | {"image_url": "s3://uploads/a", "strength": 0.02})
    yield "refused-width-alone", json.dumps(TASK | {"width": 264})
    yield "refused-height-alone", json.dumps(TASK | {"width": None, "height": 264})
    yield "refused-width-between", json.dumps(TASK | {"width": 260, "height": 264})
    for name, value in {"position": MARK, "opacity": 256, "size": 0.26, "size-small": 0.01}.items():
        yield f"refused-signature-{name}", json.dumps(TASK | {"signature": {name.split("-")[0]: value}})
    yield "refused-scheduler-without-karras", json.dumps(TASK | {"scheduler": "ddim", "karras_sigmas": True})
    # What the published schema cannot say: tests/docs/test_schemas.py has the table.
    for name, value in UNSAID.items():
        # Half of a surrogate pair stands in a file as an escape alone.
        yield f"refused-unsaid-{name}", json.dumps(TASK | {name: value}, ensure_ascii=name == "artist_name")
    yield "refused-unsaid-strength", json.dumps(TASK | {"image_url": "s3://uploads/a", "strength": 0.01})
    yield "refused-array", json.dumps([MARK])
    yield "refused-broken", json.dumps(FULL)[:-1]
    # What JSON's grammar has and few readers take: ignored where nobody asks for it, named where the task needs it.
    odd = {"a": "\ud83d", "\udc00": [1.5], "deep": json.loads("[" * 130 + "]" * 130)}
    yield "taken-odd-fields", json.dumps(TASK | {"new": odd} | {"signature": odd}).replace("1.5", "1e400")
    yield "taken-mark", "\ufeff" + json.dumps(TASK)
    yield "refused-digits", json.dumps(TASK | {"seed": 10**100})
    yield "refused-infinite", json.dumps(TASK | {"guidance_scale": 1.5}).replace("1.5", "1e400")
    yield "refused-deep", json.dumps(TASK | {"loras": odd["deep"]})
    yield "refused-mark-inside", json.dumps(TASK)[:-1] + ",\ufeff}"
    yield "refused-nan", json.dumps(TASK | {"guidance_scale": math.nan})
    yield "refused-line-break", json.dumps(TASK | {"negative_prompt": f"{MARK} blur"}).replace(" blur", "\n")
    yield "refused-python", str(TASK)
    yield "refused-twice", json.dumps(TASK) * 2
    yield "refused-half-a-quote", json.dumps(FULL).replace("euler", '"euler')


def matrix(*shape, dtype="F16", first=0x3C00):
    """Entries of a header and bytes: the first number is 1 unless told, the others are a half."""
    count = 1
    for side in shape:
        count *= side
    if dtype == "F32":
        return dtype, shape, struct.pack(f"<{count}f", 1.0, *[0.5] * (count - 1))
    return dtype, shape, struct.pack(f"<{count}H", first, *[0x3800] * (count - 1))


def file(tensors, metadata=None, claim=None):
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + data


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PEFT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def loras():
    pair = {f"{KOHYA}.lora_down.weight": matrix(2, 3), f"{KOHYA}.lora_up.weight": matrix(3, 2)}
    peft = {f"{PEFT}.lora_A.weight": matrix(1, 4, dtype="F32"), f"{PEFT}.lora_B.weight": matrix(2, 1, dtype="F32")}
    settings = json.dumps({"unet": {"lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"attn2.to_k": 8}}})
    yield "taken-kohya", file(pair | {f"{KOHYA}.alpha": matrix()})
    yield "taken-kohya-text", file({
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": matrix(1, 2, dtype="BF16", first=0x3F80),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": matrix(2, 1, dtype="BF16", first=0x3F80),
    })
    yield "taken-peft", file(peft, {"lora_adapter_metadata": settings, "ss_base_model_version": "sd_v1"})
    yield "taken-diffusers", file({
        f"{PEFT}.lora.down.weight": matrix(1, 2), f"{PEFT}.lora.up.weight": matrix(2, 1),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight": matrix(1, 2),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight": matrix(2, 1),
    })
    yield "taken-tucker", file({
        f"{KOHYA}.lora_down.weight": matrix(2, 2, 1, 1), f"{KOHYA}.lora_up.weight": matrix(2, 2, 1, 1),
        f"{KOHYA}.lora_mid.weight": matrix(2, 2, 3, 3),
    })
    halves = {f"{KOHYA}.hada_w{half}_{side}": matrix(2, 2) for half in (1, 2) for side in "ab"}
    yield "taken-loha", file(halves)
    yield "taken-loha-tucker", file(halves | {f"{KOHYA}.hada_t{half}": matrix(2, 2, 1, 1) for half in (1, 2)})
    yield "taken-lokr", file({
        f"{KOHYA}.lokr_w1": matrix(2, 2), f"{KOHYA}.lokr_w2_a": matrix(2, 1), f"{KOHYA}.lokr_w2_b": matrix(1, 2),
        f"{KOHYA}.scalar": matrix(),
    })
    yield "taken-ia3", file({f"{KOHYA}.weight": matrix(4), f"{KOHYA}.on_input": matrix()})
    yield "taken-ia3-peft", file({f"{PEFT}.ia3_l": matrix(1, 4, first=0x3800)})
    yield "taken-difference", file({f"{KOHYA}.diff": matrix(2, 2), f"{KOHYA}.diff_b": matrix(2)})
    yield "taken-norm", file({"lora_unet_mid_block_resnets_0_norm1.w_norm": matrix(2),
                              "lora_unet_mid_block_resnets_0_norm1.b_norm": matrix(2)})
    yield "taken-dora", file(pair | {f"{KOHYA}.dora_scale": matrix(1, 3)})
    yield "taken-glora", file({f"{KOHYA}.{half}.weight": matrix(*shape) for half, shape in
                               [("a1", (3, 1)), ("a2", (1, 3)), ("b1", (4, 1)), ("b2", (1, 3))]})
    yield "taken-oft", file({f"{KOHYA}.oft_blocks": matrix(2, 2, 2), f"{KOHYA}.rescale": matrix(4, 1)})
    ramp = struct.pack("<16e", *[place / 16 for place in range(16)])
    yield "taken-boft", file({f"{KOHYA}.oft_blocks": ("F16", (2, 2, 2, 2), ramp), f"{KOHYA}.alpha": matrix()})
    yield "taken-oft-peft", file({f"base_model.model.{PEFT}.oft_R.weight": matrix(2, 6)})
    yield "taken-boft-peft", file({f"base_model.model.{PEFT}.boft_R": matrix(1, 2, 2, 2),
                                   f"base_model.model.{PEFT}.boft_s": matrix(2, 1)})
    places = struct.pack("<4h", 0, 1, 2, 0), struct.pack("<2h", 3, 3)
    yield "taken-sparse", file(pair | {f"{KOHYA}.bias_values": matrix(2), f"{KOHYA}.bias_indices": ("I16", (2, 2), places[0]),
                                       f"{KOHYA}.bias_size": ("I16", (2,), places[1])})
    yield "taken-fp8", file({f"{KOHYA}.lora_down.weight": ("F8_E4M3", (1, 3), b"\x38\x30\xc0"),
                             f"{KOHYA}.lora_up.weight": ("F8_E5M2", (2, 1), b"\x3c\xc0")})
    yield "taken-unused", file({f"{KOHYA}.lokr_w1": matrix(2, 2), f"{KOHYA}.lokr_w2": matrix(2, 2),
                                f"{KOHYA}.alpha": matrix(first=0x7C00)})
    alone = json.dumps({"lora_alpha": 4, "peft_type": "LORA", "init_lora_weights": "olora", "rank_pattern": {"to_k": 1}})
    yield "taken-olora", file(peft, {"lora_adapter_metadata": alone})
    yield "refused-pissa", file(peft, {"lora_adapter_metadata": alone.replace("olora", "pissa")})
    yield "refused-setting", file(peft, {"lora_adapter_metadata": alone.replace("peft_type", "layer_replication")})
    yield "refused-places", file(pair | {f"{KOHYA}.bias_values": matrix(2), f"{KOHYA}.bias_indices": ("I16", (2, 2), places[0]),
                                         f"{KOHYA}.bias_size": ("I16", (2,), places[0][:4])})
    yield "refused-triangle", file({f"base_model.model.{PEFT}.oft_R.weight": matrix(2, 5)})
    yield "refused-empty", b""
    yield "refused-pickle", b"PK\x03\x04" + b"\0" * 40
    yield "refused-claim", file(pair, claim=2**62)
    yield "refused-cut", file(pair)[:-1]
    yield "refused-more", file(pair) + b"\0"
    yield "refused-nan", file({f"{KOHYA}.diff": matrix(2, first=0x7E00)})
    yield "refused-idle", file({f"{KOHYA}.diff": matrix(1, first=0)})
    yield "refused-key", file({"unet.unknown": matrix(1)})
    yield "refused-rank", file({f"{KOHYA}.lora_down.weight": matrix(2, 3), f"{KOHYA}.lora_up.weight": matrix(3, 1)})
    yield "refused-no-bytes", file({f"{KOHYA}.diff": ("F16", (0, 2**40), b"")})
    yield "refused-overflow", file({f"{KOHYA}.diff": ("F16", (2**33, 2**33), b"")})
    yield "refused-pattern", file(peft, {"lora_adapter_metadata": settings.replace("attn2.to_k", "((")})


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth=8, colour=2, rows=None, more=b"", interlaced=0):
    """A PNG of grey levels that grow from row to row; `more` stands before its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = (width * channels * depth + 7) // 8
    lines = b"".join(b"\0" + bytes([16 * (line % 16)]) * row for line in range(height if rows is None else rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


# Of 8x8 pixels each, as Pillow writes them.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/"
    "2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wAARCAAIAAgDAREAAhEBAxEB/8QA"
    "HwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkK"
    "FhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXG"
    "x8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAEC"
    "AxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOE"
    "hYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDPm7V0YL7X"
    "yOrF/ZP/2Q=="
)
WEBP = base64.b64decode("UklGRkQAAABXRUJQVlA4IDgAAAAQAgCdASoIAAgABABoJagCdHIAq//cAAXAAP7tZ8O3mWjatrtY3+tuw0Qd8xngs+wHbj3sKSwAAA==")
WEBP_LOSSLESS = base64.b64decode("UklGRiIAAABXRUJQVlA4TBUAAAAvB8ABAA8wKEcBPRjy/EcL+hDR/wAA")


def images():
    turned = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    yield "taken-png", png(8, 8)
    yield "taken-grey", png(7, 5, 1, 0)
    yield "taken-alpha", png(4, 4, 16, 6)
    yield "taken-palette", png(9, 3, 2, 3, more=chunk(b"PLTE", bytes(range(12))) + chunk(b"tRNS", b"\x80"))
    yield "taken-turned", png(8, 4, more=chunk(b"eXIf", turned))
    yield "taken-text", png(4, 4, more=chunk(b"tEXt", b"Comment\0a") + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 4096)))
    yield "taken-jpeg", JPEG
    yield "taken-webp", WEBP
    yield "taken-lossless", WEBP_LOSSLESS
    yield "refused-empty", b""
    yield "refused-gif", b"GIF89a\x01\0\x01\0\0\0\0;"
    yield "refused-cut-png", png(8, 8)[:-30]
    yield "refused-cut-jpeg", JPEG[:-2]
    yield "refused-cut-webp", WEBP[:-8]
    yield "refused-rows", png(8, 8, rows=3)
    yield "refused-bomb", png(60000, 60000, rows=0)
    yield "refused-long", png(65536, 1, rows=0)
    yield "refused-pixels", png(512, 129)
    # A profile that is larger than all pixels may be is not read.
    yield "taken-profile", png(4, 4, more=chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * (20 << 20), 9)))
    yield "refused-frame", JPEG.replace(b"\xff\xc0\x00\x11\x08\x00\x08\x00\x08", b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff")


def webhooks():
    for name, hosts, address in [
        ("taken-name", "", "http://api.example.org"),
        ("taken-root", "", "HTTPS://API.example.org.:8443/base//"),
        ("taken-v4", "", "http://93.184.215.14/a@b"),
        ("taken-v6", "", "http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:80"),
        ("taken-nat64", "", "http://[64:ff9b::5db8:d70e]"),
        ("taken-6to4", "", "http://[2002:5db8:d70e::1]"),
        ("taken-idna", "", "https://b\u00fccher\u3002example/"),
        ("taken-listed", "api.example.org,.good.net", "https://api.Example.org./v2"),
        ("taken-under", ".good.net", "http://a.b.good.net:81"),
        ("taken-port", "good.org:8443", "https://good.org:8443"),
        ("taken-listed-v4", "10.0.0.7", "http://0xa.7:9000"),
        ("taken-listed-v6", "[fd00::1]:8080", "http://[fd00:0:0::1]:8080"),
        ("taken-encoded", "good.org", "http://g%6fod%2eorg"),
        ("refused-local", "", "http://LOCALHOST.:8000"),
        ("refused-root-alone", "", "http://./"),
        ("refused-empty-label", "", "http://api..example.org"),
        ("refused-loopback", "", "http://017700000001"),
        ("refused-mapped", "", "http://[::ffff:169.254.169.254]"),
        ("refused-wide", "", "http://\u2460\u2461\u2466.1"),
        ("refused-metadata", "", "http://metadata.google.internal"),
        ("refused-user", "good.org", "http://good.org@evil.net"),
        ("refused-backslash", "good.org", "http://evil.net\\@good.org"),
        ("refused-no-label", ".good.net", "http://.good.net:81"),
        ("refused-ending", ".good.net", "http://evilgood.net"),
        ("refused-other-port", "good.org:8443", "https://good.org"),
        ("refused-scheme", "", "file:///etc/passwd"),
        ("refused-late-slashes", "", "http:evil.net/://good.org"),
        ("refused-query", "", "https://good.org/?a"),
        ("refused-list", "*.good.org", "https://a.good.org"),
    ]:
        yield name, f"{hosts}\n{address}"


def words(target):
    if target == "task":
        names = [f'"{name}":' for name in [*FULL, *FULL["signature"], "scale"]]
        values = ["null", "true", "-1", "1e309", "1e-7", "-0.0", str(2**63), str(2**64), '""', '"\\u0000"', '"\\ud800"',
                  '"s3://a.b/c/../d"', '"http://a@b"', '"2026-02-30T24:00:00Z"', '"9999-12-31T23:59:59-23:59"',
                  '"lcm"', '"pndm"', '"ddim"', '"unipc"', '"dpmsolver++"', '"euler_ancestral"', '"png"', '"jpeg"', '"center"', '"2:2"']
        return names + values
    if target == "lora":
        parts = ["lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "lora_A.weight",
                 "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2",
                 "lokr_t2", "hada_t1", "diff", "diff_b", "w_norm", "b_norm", "on_input", "ia3_l", "weight", "scalar",
                 "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "oft_blocks", "rescale", "oft_R.weight",
                 "boft_R", "boft_s", "bias_indices", "bias_values", "bias_size", "magnitude", "default.", "processor."]
        types = ["F64", "F32", "F16", "BF16", "I64", "I16", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64"]
        fields = ['"dtype":', '"shape":[', '"data_offsets":[', "__metadata__", "lora_adapter_metadata", "unet.", "lora_te_",
                  "lora_te2_", "text_encoder.", "alpha_pattern", "use_rslora", "rank_pattern", "init_lora_weights", "peft_type",
                  "base_model.model.", "clip_l.", "double_blocks", str(2**64 - 1), "[]"]
        return [f".{part}" for part in parts] + [f'"{kind}"' for kind in types] + fields
    if target == "image":
        return ["\x89PNG\r\n", "IHDR", "PLTE", "tRNS", "IDAT", "IEND", "eXIf", "iCCP", "zTXt", "acTL", "fcTL", "fdAT", "RIFF", "WEBP", "VP8 ",
                "VP8L", "VP8X", "ALPH", "ANIM", "ANMF", "EXIF", "JFIF", "Exif"]
    return ["http://", "https://", "[::1]", "[::ffff:", "64:ff9b::", "2002:", "2001:", "fe80::", "127.0.0.1", "169.254.",
            "100.64.", "198.18.", "0x7f", "0177", "localhost", ".localhost", "metadata", "%2e", "%00", "\u3002", "\u00ad",
            "xn--", "@", "\\", "\t", ":80", ":443", "/..", ".good.net", "good.org", ","]


for target, seeds in [("task", tasks()), ("lora", loras()), ("image", images()), ("webhook", webhooks())]:
    folder = HERE / "seeds" / target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in seeds:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    quoted = ("".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in word.encode()) for word in words(target))
    (HERE / "seeds" / f"{target}.dict").write_text("".join(f'"{word}"\n' for word in quoted))
