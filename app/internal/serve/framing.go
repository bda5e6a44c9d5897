package serve

import "bytes"

// head finds the end of a request's head, which may come in pieces. Lines end
// as in net/http: with or without a carriage return. Empty lines before the
// first do not count.
type head struct {
	begun bool // a line that is not empty has begun
	line  int  // bytes of the current line, without a carriage return
}

// end returns how many bytes of p belong to the head, or -1 if it goes on.
func (h *head) end(p []byte) int {
	for i := 0; i < len(p); {
		n := bytes.IndexByte(p[i:], '\n')
		if n < 0 {
			h.add(p[i:])
			return -1
		}
		h.add(p[i : i+n])
		i += n + 1
		if h.begun && h.line == 0 {
			return i
		}
		h.line = 0
	}
	return -1
}

func (h *head) add(part []byte) {
	h.line += len(part)
	if h.line == 1 && len(part) == 1 && part[0] == '\r' {
		h.line = 0
	}
	if h.line > 0 {
		h.begun = true
	}
}

// chunks finds the end of a chunked body with its trailer, where net/http finds
// it.
//
// If the trailer is anything but an empty line, net/http reads on until it has seen
// an empty line with carriage returns, even if the trailer has ended before with
// one that has none: what lies between is the beginning of the next request, which
// net/http then has.
type chunks struct {
	part  chunkPart
	left  int64 // bytes left of the chunk's data
	size  int64 // the chunk's size, as far as its line was read
	some  bool  // the current line has a byte
	seen  int   // bytes of the trailer
	last4 [4]byte
	ended bool   // the trailer has ended, and net/http reads on
	ahead []byte // what it has read since
}

type chunkPart int

const (
	chunkSize      chunkPart = iota
	chunkExtension           // after the size, up to the end of the line
	chunkData
	chunkDataEnd // the line end after the data
	chunkTrailer
	chunkNonsense // what net/http will not understand either
)

// end returns how many bytes of p net/http reads for the body, or -1 if it goes on.
func (c *chunks) end(p []byte) int {
	for i := 0; i < len(p); {
		switch c.part {
		case chunkNonsense:
			return -1
		case chunkData:
			n := min(c.left, int64(len(p)-i))
			i += int(n)
			if c.left -= n; c.left == 0 {
				c.part = chunkDataEnd
			}
		case chunkTrailer:
			if c.trailer(p[i]) {
				return i + 1
			}
			i++
		default:
			c.next(p[i])
			i++
		}
	}
	return -1
}

// trailer reads a byte of the trailer. It reports whether that was the last one
// that net/http reads.
func (c *chunks) trailer(b byte) (last bool) {
	c.last4 = [4]byte{c.last4[1], c.last4[2], c.last4[3], b}
	c.seen++
	switch {
	case c.ended:
		c.ahead = append(c.ahead, b)
	case b == '\n':
		c.ended, c.some = !c.some, false
	case b != '\r':
		c.some = true
	}
	if c.seen == 2 && c.last4[2] == '\r' && b == '\n' {
		return true
	}
	return c.seen >= 4 && c.last4 == [4]byte{'\r', '\n', '\r', '\n'}
}

// next reads a byte that is neither data nor part of the trailer.
func (c *chunks) next(b byte) {
	switch {
	case b == '\r':
	case c.part == chunkDataEnd && b == '\n':
		c.part, c.size, c.some = chunkSize, 0, false
	case c.part == chunkDataEnd:
		c.part = chunkNonsense
	case b == '\n' && !c.some:
		c.part = chunkNonsense
	case b == '\n' && c.size == 0:
		c.part, c.some = chunkTrailer, false
	case b == '\n':
		c.part, c.left = chunkData, c.size
	case c.part == chunkExtension:
	default:
		c.digit(b)
	}
}

func (c *chunks) digit(b byte) {
	switch {
	case b >= '0' && b <= '9':
		b -= '0'
	case b >= 'a' && b <= 'f':
		b -= 'a' - 10
	case b >= 'A' && b <= 'F':
		b -= 'A' - 10
	case b == ';' || b == ' ' || b == '\t':
		c.part = chunkExtension
		return
	default:
		c.part = chunkNonsense
		return
	}
	if c.size >= 1<<58 {
		c.part = chunkNonsense
		return
	}
	c.size, c.some = c.size<<4|int64(b), true
}
