"""Formats that are decoded, by PIL's names, with the endings of their files. Imports neither torch nor PIL."""

# The only formats tried: others run programs (EPS calls Ghostscript), need plugins or hold no plain images. Of their
# endings, .pfm (depth maps) and .bw, .rgb, .rgba (raw pixels too) are left out.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),  # with Pillow 11.3
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "SGI": (".sgi",),
    "SUN": (".ras",),
    "HEIF": (".heic", ".heif", ".hif"),  # with pillow-heif
    "TGA": (".tga", ".icb", ".vda", ".vst"),  # last: it has no signature, so that other content could pass for it
}
FORM_OF = {ending: form for form, endings in FORMATS.items() for ending in endings}
# How content begins, after the given offset, that is no image here: what it is, and the remedy.
STRANGERS = (
    (4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), "HEIC: pip install pillow-heif"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL is not read: convert it, for instance to PNG"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS, not the image: git lfs pull"),
)


def stranger(start: bytes) -> str:
    """What a file is that no decoder reads, by its first 32 bytes; empty if that is not known."""
    return next((what for offset, begins, what in STRANGERS if start[offset:].startswith(begins)), "")
