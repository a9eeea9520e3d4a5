"""Near duplicates: copies are found, other pictures are not. Oracles: a double loop; imagehash itself."""

import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image as pillow
from PIL import ImageEnhance

from vitreous.inputs.image import Image
from vitreous.inputs.near_duplicates import MAX_DISTANCE, digest_pixels, find_near_pairs, hash_picture
from vitreous.inputs.volume import Volume

DATA = Path(__file__).parents[3] / "shared" / "data"
IDRID, RETINA = DATA / "idrid", DATA / "medmnist" / "retinamnist.npz"


def draw(seed: int, side: int = 192) -> pillow.Image:
    """A picture of a few soft blobs on a dark ground, by seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    grey = np.zeros((side, side, 3))
    for _ in range(80):
        row, column, size = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.01, 0.12)
        blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * size**2))
        grey += blob[..., None] * rng.uniform(-80, 80) * rng.uniform(0.6, 1, 3)
    return pillow.fromarray(np.clip(grey + 100, 0, 220).astype(np.uint8))


def as_image(picture: pillow.Image) -> Image:
    pixels = np.asarray(picture)
    return Image(pixels if pixels.ndim == 3 else pixels[..., None])


def distance(first: pillow.Image, second: pillow.Image) -> int:
    one, other = hash_picture(as_image(first)), hash_picture(as_image(second))
    assert one is not None
    assert other is not None
    return int((one != other).sum())


def copies(picture: pillow.Image) -> dict[str, pillow.Image]:
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=75)
    side = picture.width
    return {
        "JPEG": pillow.open(packed),
        "brighter": ImageEnhance.Brightness(picture).enhance(1.1),
        "darker": ImageEnhance.Brightness(picture).enhance(0.9),
        "half size": picture.resize((side // 2, side // 2), pillow.Resampling.LANCZOS),
        "another format": picture.resize((side, 3 * side // 4), pillow.Resampling.BILINEAR),
        "grey": picture.convert("L"),
    }


def test_copies_are_near_and_other_pictures_are_not() -> None:
    pictures = [draw(seed) for seed in range(12)]
    for picture in pictures:
        found = {name: distance(picture, copy) for name, copy in copies(picture).items()}
        assert max(found.values()) <= MAX_DISTANCE, found
    between = [distance(one, other) for i, one in enumerate(pictures) for other in pictures[:i]]
    assert min(between) > 2 * MAX_DISTANCE


def test_hash_is_that_of_imagehash_for_a_picture_of_its_own_size() -> None:
    grey = np.asarray(draw(3, 64).convert("L")).copy()
    grey[0, :2] = 0, 255  # the full range, so that stretching changes nothing
    expected = imagehash.phash(pillow.fromarray(grey), hash_size=16).hash.reshape(-1)
    np.testing.assert_array_equal(hash_picture(Image(grey[..., None])), expected)


def test_sixteen_bits_hash_as_eight() -> None:
    grey = np.asarray(draw(4).convert("L"))[..., None]
    deep = Image(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(hash_picture(deep), hash_picture(Image(grey)))
    assert digest_pixels(deep) != digest_pixels(Image(grey))


def test_one_colour_has_no_hash() -> None:
    assert hash_picture(Image(np.full((40, 40, 3), 9, np.uint8))) is None


def test_volumes_by_their_mean_projection() -> None:
    rng = np.random.default_rng(0)
    voxels = np.stack([np.asarray(draw(5).convert("L"), np.float32)] * 4) + rng.normal(0, 2, (4, 192, 192))
    voxels = voxels.astype(np.float32)
    first = hash_picture(Volume(voxels, None))
    again = hash_picture(Volume(np.ascontiguousarray(voxels[::-1]), None))
    other = hash_picture(Volume(voxels.swapaxes(1, 2).copy(), None))
    assert first is not None
    assert again is not None
    assert other is not None
    assert (first != again).sum() <= 2
    assert (first != other).sum() > 2 * MAX_DISTANCE


def test_digest_tells_values_shape_and_type() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    digest = digest_pixels(Image(pixels))
    assert digest == digest_pixels(Image(pixels.copy(), {"format": "PNG"}))
    assert digest != digest_pixels(Image(pixels.reshape(6, 4, 1)))
    changed = pixels.copy()
    changed[-1, -1] += 1
    assert digest != digest_pixels(Image(changed))


@pytest.mark.parametrize("max_distance", [0, 3, 16, 18])
def test_pairs_are_those_of_a_double_loop(max_distance: int) -> None:
    rng = np.random.default_rng(1)
    hashes = rng.random((5000, 256)) < 0.5
    for copy, original, flipped in ((17, 3, 0), (4999, 17, 2), (2500, 2048, 5), (2047, 2048, 16), (1, 0, 17)):
        hashes[copy] = hashes[original]
        hashes[copy, :flipped] ^= True
    pairs, distances = find_near_pairs(hashes, max_distance)
    packed = [int.from_bytes(row.tobytes(), "big") for row in np.packbits(hashes, axis=1)]
    planted = [0, 1, 3, 17, 2047, 2048, 2500, 4999]
    expected = {
        (i, j): (packed[i] ^ packed[j]).bit_count()
        for i in planted
        for j in range(5000)
        if i < j and (packed[i] ^ packed[j]).bit_count() <= max_distance
    }
    assert dict(zip(map(tuple, pairs.tolist()), distances.tolist())) == expected
    assert pairs.tolist() == sorted(pairs.tolist())


def test_a_distance_beyond_the_hash_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0…256 bits; got 257"):
        find_near_pairs(np.zeros((2, 256), bool), 257)


@pytest.mark.real
@pytest.mark.skipif(not IDRID.is_dir(), reason=f"needs {IDRID}")
def test_idrid_has_six_pairs_and_the_threshold_parts_copies_from_others() -> None:
    files = sorted(IDRID.rglob("*.jpg"))
    pictures = [pillow.open(file).convert("RGB") for file in files]
    hashes = [hash_picture(as_image(picture)) for picture in pictures]
    assert all(bits is not None for bits in hashes)
    pairs, distances = find_near_pairs(np.array(hashes), 25)
    named = {(f"{files[i].parent.name} {files[i].stem}", f"{files[j].parent.name} {files[j].stem}") for i, j in pairs}
    assert set(distances.tolist()) == {0}
    assert len(named) == 6
    assert ("test IDRiD_064", "train IDRiD_118") in named
    for picture in pictures[::40]:
        found = {name: distance(picture, copy) for name, copy in copies(picture).items()}
        assert max(found.values()) <= MAX_DISTANCE, found


@pytest.mark.real
@pytest.mark.skipif(not RETINA.is_file(), reason=f"needs {RETINA}")
def test_near_pairs_of_retinamnist_stay_inside_its_splits() -> None:
    arrays = np.load(RETINA)
    hashes, splits = [], []
    for split in ("train", "val", "test"):
        pictures = [hash_picture(Image(pixels)) for pixels in arrays[f"{split}_images"]]
        hashes += [bits for bits in pictures if bits is not None]
        splits += [split] * len(pictures)
    assert len(hashes) == len(splits) == 1600
    pairs, _ = find_near_pairs(np.array(hashes))
    assert len(pairs) == 21
    assert all(splits[i] == splits[j] for i, j in pairs)
