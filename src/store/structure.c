/* Numbers of tables and sections are those of the HDF5 file format specification, version 3.0. */
#include "store/structure.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/file.h"

/* No group is nested deeper than DEEPEST; a heap collection of text has SMALLEST to LARGEST bytes; how many bytes
 * may be looked at, some more than once. */
enum { DEEPEST = 8, CONTINUATIONS = 256, SMALLEST = 4096, LARGEST = 64 << 20, LOOKED = 1 << 30 };
static const uint64_t NOWHERE = UINT64_MAX; /* the undefined address */

typedef struct view {
  const unsigned char *data; /* the file, mapped */
  uint64_t bytes;
  uint64_t objects, looked; /* groups and datasets so far; bytes of messages and of text */
  uint64_t wrong_at;
  const char *wrong; /* what was expected there; NULL while all is well */
} view;

static bool refuse(view *v, uint64_t at, const char *expected) {
  if (!v->wrong) v->wrong_at = at, v->wrong = expected;
  return false;
}

static const unsigned char *piece(const view *v, uint64_t at, uint64_t length) {
  return at <= v->bytes && length <= v->bytes - at ? v->data + at : NULL;
}

static uint64_t number(const unsigned char *p, int bytes) {
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; i--) value = value << 8 | p[i];
  return value;
}

static uint64_t position(const view *v, const unsigned char *p) { return (uint64_t)(p - v->data); }

/* ---- text of attributes: the global heap (III.E) ---- */

/* Indices count up from 1, text has no zero inside. A size that grew within its padding would show as a zero, any larger change as an
 * index out of order. Index 0 is what is free and reaches to the end. */
static bool objects_fit(const unsigned char *c, uint64_t size, uint64_t wanted, uint64_t *length_of_wanted) {
  enum { HEAD = 16 };
  uint64_t at = HEAD, last = 0;
  while (at + HEAD <= size) {
    uint64_t index = number(c + at, 2), length = number(c + at + 8, 8), left = size - at;
    if (index == 0) return length == left;
    uint64_t padded = length > left ? left : (length + 7) / 8 * 8;
    if (index != ++last || length > left || HEAD + padded > left || memchr(c + at + HEAD, 0, length)) return false;
    if (index == wanted) *length_of_wanted = length;
    at += HEAD + padded;
  }
  return true;
}

static bool check_text(view *v, const unsigned char *reference) {
  uint64_t length = number(reference, 4), at = number(reference + 4, 8), index = number(reference + 12, 4), found = NOWHERE;
  if (length == 0 && at == 0) return true;
  const unsigned char *head = piece(v, at, 16);
  uint64_t size = head ? number(head + 8, 8) : 0;
  bool good = head && memcmp(head, "GCOL\1\0\0\0", 8) == 0 && size >= SMALLEST && size <= LARGEST && piece(v, at, size);
  if (good) v->looked += size;
  if (!good || v->looked > LOOKED || !objects_fit(head, size, index, &found) || index == 0 || found != length)
    return refuse(v, at, "the text of an attribute in a whole heap collection");
  return true;
}

/* ---- types and shapes (IV.A.2.b, d) ---- */

/* As HDF5 stores the types of this program; the upper half of the first byte is a version, and for these types without meaning. */
static const struct stored_type {
  const char *bytes;
  unsigned length, element, attribute; /* bytes of an element of a dataset, of an attribute; 0: cannot be one */
} types[] = {
    {"\x11\x20\x3f\0\x08\0\0\0\0\0\x40\0\x34\x0b\0\x34\xff\x03\0\0", 20, 8, 8}, /* float64 */
    {"\x11\x20\x1f\0\x04\0\0\0\0\0\x20\0\x17\x08\0\x17\x7f\0\0\0", 20, 4, 0},   /* float32 */
    {"\x11\x20\x0f\0\x02\0\0\0\0\0\x10\0\x0a\x05\0\x0a\x0f\0\0\0", 20, 2, 0},   /* float16 */
    {"\x10\0\0\0\x04\0\0\0\0\0\x20\0", 12, 4, 0},                               /* uint32 */
    {"\x10\0\0\0\x01\0\0\0\0\0\x08\0", 12, 1, 0},                               /* uint8 */
    {"\x10\x08\0\0\x08\0\0\0\0\0\x40\0", 12, 0, 8},                             /* int64 */
    {"\x19\x01\x01\0\x10\0\0\0\x10\0\0\0\x01\0\0\0\0\0\x08\0", 20, 0, 16},      /* text in UTF-8 of any length */
};

/* HDF5 1.10 knows versions 1 to 3, and where it cannot decode one attribute of several it crashes. */
static bool any_version(unsigned char stored, char ours) { return (stored & 15) == (ours & 15) && stored >> 4 >= 1 && stored >> 4 <= 3; }

static const struct stored_type *find_type(const unsigned char *p, uint64_t length) {
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    const struct stored_type *t = &types[i];
    bool nested = t->attribute == 16; /* text is made of bytes */
    if (length != t->length || !any_version(p[0], t->bytes[0]) || memcmp(p + 1, t->bytes + 1, nested ? 7 : length - 1) != 0) continue;
    if (!nested || (any_version(p[8], t->bytes[8]) && memcmp(p + 9, t->bytes + 9, length - 9) == 0)) return t;
  }
  return NULL;
}

/* One to three dimensions that do not grow; their product. */
static bool count_of(const unsigned char *p, uint64_t length, uint64_t *count) {
  if (length < 4 || p[0] != 2 || p[1] < 1 || p[1] > 3 || p[2] > 1 || p[3] != 1 || length != 4 + 8u * p[1] * (1u + p[2])) return false;
  *count = 1;
  for (int i = 0; i < p[1]; i++)
    if (__builtin_mul_overflow(*count, number(p + 4 + 8 * i, 8), count)) return false;
  return !p[2] || memcmp(p + 4, p + 4 + 8 * p[1], 8u * p[1]) == 0;
}

/* ---- messages of an object (IV.A.2) ---- */

typedef struct found {
  bool is_group;
  const unsigned char *space, *type, *layout; /* of a dataset; NULL: not seen */
  uint64_t space_length, type_length;
} found;

static bool check_object(view *v, uint64_t at, int depth);

/* As this program writes it (version 3), and as other programs do that note something in a file of ours (version 1, whose parts are padded). */
static bool check_attribute(view *v, const unsigned char *p, uint64_t length) {
  if (length < 9 || (p[0] != 3 && p[0] != 1) || p[1] != 0 || (p[0] == 3 && p[8] > 1)) return refuse(v, position(v, p), "an attribute");
  const uint64_t pad = p[0] == 1 ? 7 : 0;
  uint64_t name = number(p + 2, 2), type = number(p + 4, 2), space = number(p + 6, 2);
  uint64_t name_at = p[0] == 3 ? 9 : 8, type_at = name_at + ((name + pad) & ~pad), space_at = type_at + ((type + pad) & ~pad),
           data_at = space_at + ((space + pad) & ~pad);
  if (name < 2 || data_at > length) return refuse(v, position(v, p), "an attribute whose parts fit in it");
  const struct stored_type *t = find_type(p + type_at, type);
  const unsigned char *shape = p + space_at;
  bool scalar = (space == 4 && memcmp(shape, "\2\0\0", 4) == 0) || (space == 8 && memcmp(shape, "\1\0\0\0\0\0\0", 8) == 0);
  if (memchr(p + name_at, 0, name) != p + name_at + name - 1) return refuse(v, position(v, p), "an attribute with a name");
  if (!t || !t->attribute || !scalar || length - data_at != t->attribute)
    return refuse(v, position(v, p), "an attribute that is one text, int64 or float64");
  return t->attribute != 16 || check_text(v, p + data_at);
}

/* A relative path without a step up, and zero-terminated. */
static bool stays_inside(const unsigned char *path, uint64_t length) {
  const char *p = (const char *)path;
  if (length < 2 || *p == '/') return false;
  for (;;) {
    size_t part = strcspn(p, "/");
    if (part == 2 && p[0] == '.' && p[1] == '.') return false;
    if (!p[part]) return true;
    p += part + 1;
  }
}

/* A link in its message form, wherever it lies. follow: what it leads to is looked at. */
static bool check_link(view *v, const unsigned char *p, uint64_t length, int depth, bool follow) {
  uint64_t start = position(v, p), at = 2, name;
  if (length < 2 || p[0] != 1 || p[1] & ~0x1f) return refuse(v, start, "a link");
  int size_bytes = 1 << (p[1] & 3), type = 0;
  uint64_t before = at + (p[1] >> 3 & 1) + 8u * (p[1] >> 2 & 1) + (p[1] >> 4 & 1) + (unsigned)size_bytes;
  if (length < before) return refuse(v, start, "a link");
  if (p[1] & 8) type = p[at];
  name = number(p + before - size_bytes, size_bytes);
  if (name == 0 || name > length - before || memchr(p + before, 0, name) || memchr(p + before, '/', name))
    return refuse(v, start, "a link with a plain name");
  at = before + name;
  if (type == 0) {
    if (length - at != 8) return refuse(v, start, "a link to an object");
    return !follow || check_object(v, number(p + at, 8), depth + 1);
  }
  uint64_t value = length - at >= 2 ? number(p + at, 2) : 0;
  if (type != 64 || value < 4 || value != length - at - 2) return refuse(v, start, "a link to an object or another file");
  const unsigned char *file = p + at + 3, *last = p + length - 1, *end = memchr(file, 0, value - 1);
  if (p[at + 2] != 0 || *last != 0 || !end || end == last || memchr(end + 1, 0, (size_t)(last - end)) != last ||
      !stays_inside(file, (uint64_t)(end - file) + 1))
    return refuse(v, start, "a link to a file inside the folder");
  return true;
}

/* ---- many links: a fractal heap of link messages (III.G) and two B-trees of where they are (III.A.2) ---- */

enum { HEAP_WIDTH = 4, HEAP_START = 512, HEAP_ROWS = 9, NODE = 512, NODE_ENDS = 10 };

typedef struct heap {
  uint64_t at, root;
  unsigned rows; /* of blocks below the root; 0: the root is the one block */
} heap;

static bool open_heap(view *v, uint64_t at, heap *h) {
  const unsigned char *p = piece(v, at, 146);
  if (!p || memcmp(p, "FRHP\0\7\0\0\0\2\0\x10\0\0", 14) != 0 || number(p + 22, 8) != NOWHERE || number(p + 86, 8) != 0 ||
      number(p + 102, 8) != 0 || memcmp(p + 110, "\4\0\0\2\0\0\0\0\0\0\0\0\1\0\0\0\0\0\x20\0", 20) != 0)
    return refuse(v, at, "a heap of links");
  *h = (heap){at, number(p + 132, 8), (unsigned)number(p + 140, 2)};
  if (h->rows == 0) return true;
  p = piece(v, h->root, 17 + 8u * HEAP_WIDTH * h->rows + 4);
  if (!p || h->rows > HEAP_ROWS || memcmp(p, "FHIB", 5) != 0 || number(p + 5, 8) != at || number(p + 13, 4) != 0)
    return refuse(v, h->root, "the first block of a heap of links");
  return true;
}

/* The bytes of a block that has this offset of the heap's space, and where it begins there; NULL: none. */
static const unsigned char *find_block(view *v, const heap *h, uint64_t offset, uint64_t *begin, uint64_t *size) {
  uint64_t at = h->root;
  *begin = 0;
  *size = HEAP_START;
  for (unsigned i = 0; i < h->rows * HEAP_WIDTH; i++) {
    *size = (uint64_t)HEAP_START << (i < 2 * HEAP_WIDTH ? 0 : i / HEAP_WIDTH - 1);
    if (offset < *begin + *size) {
      at = number(v->data + h->root + 17 + 8 * i, 8);
      break;
    }
    *begin += *size;
  }
  const unsigned char *p = offset < *begin + *size ? piece(v, at, *size) : NULL;
  bool good = p && memcmp(p, "FHDB", 5) == 0 && number(p + 5, 8) == h->at && number(p + 13, 4) == *begin;
  return good ? p : NULL;
}

static bool check_record(view *v, const heap *h, const unsigned char *id, int depth, bool follow) {
  uint64_t offset = number(id + 1, 4), length = number(id + 5, 2), begin, size;
  const unsigned char *block = id[0] == 0 ? find_block(v, h, offset, &begin, &size) : NULL;
  if (!block || offset - begin < 21 || length > size - (offset - begin)) return refuse(v, position(v, id), "a link in its heap");
  return check_link(v, block + (offset - begin), length, depth, follow);
}

/* Records of a node begin with a key; in the tree of names the links are followed. */
static bool check_node(view *v, const heap *h, bool leaf, uint64_t at, uint64_t count, bool names, int depth) {
  unsigned record = names ? 11 : 15, each = record + (leaf ? 0 : 9);
  const unsigned char *p = piece(v, at, NODE);
  if (!p || memcmp(p, leaf ? "BTLF" : "BTIN", 5) != 0 || p[5] != (names ? 5 : 6) || count * each + NODE_ENDS + (leaf ? 0 : 9) > NODE)
    return refuse(v, at, "a node of an index of links");
  for (uint64_t i = 0; i < count; i++)
    if (!check_record(v, h, p + 6 + i * record + record - 7, depth, names)) return false;
  for (uint64_t i = 0; !leaf && i <= count; i++) {
    const unsigned char *child = p + 6 + count * record + 9 * i;
    if (!check_node(v, h, true, number(child, 8), child[8], names, depth)) return false;
  }
  return true;
}

static bool check_index(view *v, const heap *h, uint64_t at, bool names, int depth) {
  const unsigned char *p = piece(v, at, 38);
  if (!p || memcmp(p, "BTHD", 5) != 0 || memcmp(p + 5, names ? "\5\0\2\0\0\x0b" : "\6\0\2\0\0\x0f", 7) != 0 || number(p + 12, 2) > 1 ||
      p[14] != 100 || p[15] != 40)
    return refuse(v, at, "an index of at most some hundred links");
  return check_node(v, h, number(p + 12, 2) == 0, number(p + 16, 8), number(p + 24, 2), names, depth);
}

static bool check_link_info(view *v, const unsigned char *p, uint64_t length, int depth) {
  heap h;
  if (length != 34 || p[0] != 0 || p[1] != 3) return refuse(v, position(v, p), "links in order of creation");
  uint64_t links = number(p + 10, 8), names = number(p + 18, 8), order = number(p + 26, 8);
  if (links == NOWHERE) return (names == NOWHERE && order == NOWHERE) || refuse(v, position(v, p), "no index of links");
  return open_heap(v, links, &h) && check_index(v, &h, names, true, depth) && check_index(v, &h, order, false, depth);
}

static bool once(const unsigned char **place, const unsigned char *p) {
  bool first = !*place;
  *place = p;
  return first;
}

static bool check_message(view *v, int type, const unsigned char *p, uint64_t length, int depth, found *f) {
  static const char *const none = "one of the messages that this program writes";
  bool good = false;
  switch (type) {
  case 0x00: return true; /* a gap */
  case 0x01: good = once(&f->space, p), f->space_length = length; break;
  case 0x02: f->is_group = true; return check_link_info(v, p, length, depth);
  case 0x03: good = once(&f->type, p), f->type_length = length; break;
  case 0x05: good = length == 2 && p[0] == 3 && !(p[1] & ~0x1f); break; /* no fill value */
  case 0x06: f->is_group = true; return check_link(v, p, length, depth, true);
  case 0x08: good = length == 18 && (p[0] == 3 || p[0] == 4) && p[1] == 1 && once(&f->layout, p); break; /* contiguous */
  case 0x0a: good = length == 2 && p[0] == 0 && p[1] == 0; break;
  case 0x0c: return check_attribute(v, p, length);
  case 0x15: /* attributes lie in the header, none elsewhere */
    good = length == 2u + (p[1] & 1 ? 2 : 0) + 16u && p[0] == 0 && !(p[1] & ~1) && number(p + length - 16, 8) == NOWHERE &&
           number(p + length - 8, 8) == NOWHERE;
    break;
  default: break;
  }
  return good || refuse(v, position(v, p), none);
}

static bool check_whole(view *v, uint64_t at, const found *f) {
  bool has_data = f->space || f->type || f->layout;
  uint64_t count = 0, bytes = 0;
  if (f->is_group) return !has_data || refuse(v, at, "a group or a dataset");
  const struct stored_type *t = f->space && f->type && f->layout ? find_type(f->type, f->type_length) : NULL;
  if (!t || !t->element || !count_of(f->space, f->space_length, &count) || __builtin_mul_overflow(count, (uint64_t)t->element, &bytes))
    return refuse(v, at, "a dataset of float64, float32, float16, uint32 or uint8 in 1 to 3 dimensions");
  if (number(f->layout + 10, 8) != bytes || (bytes && !piece(v, number(f->layout + 2, 8), bytes)))
    return refuse(v, at, "a dataset whose data lies in the file");
  return true;
}

/* Object header, version 2 (IV.A.1.b). Every object has one link: there are fewer than the file has room for. */
static bool check_object(view *v, uint64_t at, int depth) {
  struct {
    uint64_t at, bytes;
  } chunks[CONTINUATIONS];
  int count = 1;
  found f = {0};
  const unsigned char *p = piece(v, at, 6 + 4 + 8);
  if (depth > DEEPEST || ++v->objects > v->bytes / 32) return refuse(v, at, "groups that are nested at most 8 deep, each with one link");
  if (!p || memcmp(p, "OHDR\2", 5) != 0 || p[5] & ~0x17) return refuse(v, at, "a group or dataset");
  unsigned head = p[5] & 4 ? 6 : 4, size_bytes = 1u << (p[5] & 3), start = 6 + (p[5] & 0x10 ? 4 : 0);
  chunks[0].at = at + start + size_bytes;
  chunks[0].bytes = number(p + start, (int)size_bytes);
  for (int i = 0; i < count; i++) {
    const unsigned char *m = piece(v, chunks[i].at, chunks[i].bytes), *end;
    v->looked += chunks[i].bytes;
    if (!m || v->looked > LOOKED || !piece(v, chunks[i].at + chunks[i].bytes, 4))
      return refuse(v, chunks[i].at, "messages that end inside the file");
    for (end = m + chunks[i].bytes; (uint64_t)(end - m) >= head;) {
      uint64_t length = number(m + 1, 2);
      const unsigned char *body = m + head;
      if (length > (uint64_t)(end - body) || m[3] & ~5) return refuse(v, position(v, m), "a message that ends with its object");
      if (m[0] == 0x10) {
        const unsigned char *more = length == 16 ? piece(v, number(body, 8), number(body + 8, 8)) : NULL;
        if (!more || number(body + 8, 8) < 8 || memcmp(more, "OCHK", 4) != 0 || count == CONTINUATIONS)
          return refuse(v, position(v, m), "more messages of an object");
        chunks[count].at = number(body, 8) + 4;
        chunks[count++].bytes = number(body + 8, 8) - 8;
      } else if (!check_message(v, m[0], body, length, depth, &f)) {
        return false;
      }
      m = body + length;
    }
  }
  return check_whole(v, at, &f);
}

/* Superblock, version 3 (II.A). */
static bool check_file(view *v) {
  const unsigned char *p = piece(v, 0, 48);
  if (!p || p[8] != 3) return refuse(v, 0, "a file in the format of HDF5 1.10");
  if (p[9] != 8 || p[10] != 8 || p[11] != 0 || number(p + 12, 8) != 0 || number(p + 20, 8) != NOWHERE || number(p + 28, 8) > v->bytes)
    return refuse(v, 0, "a whole file that was closed");
  return check_object(v, number(p + 36, 8), 0);
}

status structure_check(const char *path) {
  file_map map;
  status st = file_map_open(path, &map);
  if (st != OK) return st;
  view v = {.data = map.data, .bytes = map.bytes};
  const unsigned char *signature = piece(&v, 0, 8); /* HDF5 would search the whole file for it */
  if (map.bytes == 0)
    st = fail(E_DATA, "%s: expected an HDF5 file, found an empty one", path);
  else if (!signature || memcmp(signature, "\x89HDF\r\n\x1a\n", 8) != 0)
    st = fail(E_DATA, "%s: expected an HDF5 file, found something else (%zu bytes)", path, map.bytes);
  else if (!check_file(&v))
    st = fail(E_DATA, "%s: byte %" PRIu64 ": expected %s, found a damaged or truncated file, or one that another program wrote", path,
              v.wrong_at, v.wrong);
  file_map_close(&map);
  return st;
}
