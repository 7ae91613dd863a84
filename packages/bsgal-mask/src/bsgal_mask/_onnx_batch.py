"""Free the batch dimension of an ONNX file that was exported for one image at a time.

The published U2-Net files fix it to 1 although no operation in them depends on it. An ONNX file
is a protocol-buffers message; the few fields on the way to that dimension are rewritten here, so
that no ONNX library is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _LENGTH_DELIMITED = 0, 2
_WIDTHS = {1: 8, 5: 4}
# Field numbers of onnx.proto: model.graph, then graph.input or graph.output, then the value's
# type.tensor_type.shape.dim; of a dim: dim_param.
_GRAPH, _INPUT, _OUTPUT = 7, 11, 12
_TYPE_TENSOR_SHAPE_DIM = (2, 1, 2, 1)
_DIM_PARAM = 2


def with_free_batch(model: bytes) -> bytes:
    """Return the model with the first dimension of every input and output named `batch`.

    Raises:
        ValueError: The bytes are not a protocol-buffers message.
    """
    try:
        for value in (_INPUT, _OUTPUT):
            model = _rewrite(model, (_GRAPH, value, *_TYPE_TENSOR_SHAPE_DIM))
    except IndexError:
        raise ValueError("the model file is damaged or not an ONNX file") from None
    return model


def _rewrite(message: bytes, path: tuple[int, ...]) -> bytes:
    """Replace the submessage at the end of a path of field numbers by a named dimension.

    Every match is followed, except at the end: there only the first one, the batch, is replaced.
    """
    if not path:
        name = b"batch"
        return bytes([_DIM_PARAM << 3 | _LENGTH_DELIMITED, len(name)]) + name
    parts: list[bytes] = []
    is_found = False
    for number, wire_type, start, content, end in _fields(message):
        if number == path[0] and wire_type == _LENGTH_DELIMITED and not (is_found and not path[1:]):
            is_found = True
            inner = _rewrite(message[content:end], path[1:])
            parts += [_varint(number << 3 | _LENGTH_DELIMITED), _varint(len(inner)), inner]
        else:
            parts.append(message[start:end])
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (field number, wire type, start, start of the content, end) of a message's fields."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _LENGTH_DELIMITED:
            length, position = _read_varint(message, position)
            end = position + length
        elif wire_type == _VARINT:
            _, end = _read_varint(message, position)
        elif wire_type in _WIDTHS:
            end = position + _WIDTHS[wire_type]
        else:
            raise IndexError(f"wire type {wire_type}")
        if end > len(message):
            raise IndexError("field reaches beyond the end")
        yield number, wire_type, start, position, end
        position = end


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if not byte & 0x80:
            return value, position


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
