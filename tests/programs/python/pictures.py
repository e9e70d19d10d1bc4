"""Pillow: every common format there and back, and what is done to pictures."""

import hashlib
import io

from PIL import Image, ImageDraw, ImageFilter, ImageOps

picture = Image.new("RGB", (320, 200), "navy")
draw = ImageDraw.Draw(picture)
for n in range(40):
    draw.ellipse((n * 8, n * 5, n * 8 + 60, n * 5 + 40), outline=(255, n * 6, 0), width=2)
draw.text((10, 10), "in a sandbox", fill="white")


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
    stored = io.BytesIO()
    picture.save(stored, kind)
    again = Image.open(io.BytesIO(stored.getvalue())).convert("RGB")
    print(kind, again.size, digest(again))
print("resized", digest(picture.resize((64, 40), Image.Resampling.LANCZOS)))
print("blurred", digest(picture.filter(ImageFilter.GaussianBlur(3))))
print("turned", digest(picture.rotate(30, expand=True)))
print("grey", digest(ImageOps.autocontrast(ImageOps.grayscale(picture))))
