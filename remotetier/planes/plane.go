package planes

import "encoding/binary"

var le = binary.LittleEndian

// group writes the planes of src, elements of width bytes, one after another
// into dst, which is as long.
func group(dst, src []byte, width int) {
	n := len(src) / width
	i := 0 // elements done
	switch width {
	case 2:
		a, b := dst[:n], dst[n:2*n]
		for ; i+8 <= n; i += 8 {
			e, o := halves(src[2*i:])
			le.PutUint64(a[i:], e)
			le.PutUint64(b[i:], o)
		}
	case 4:
		a, b, c, d := dst[:n], dst[n:2*n], dst[2*n:3*n], dst[3*n:4*n]
		for ; i+8 <= n; i += 8 {
			e0, o0 := halves(src[4*i:])
			e1, o1 := halves(src[4*i+16:])
			le.PutUint64(a[i:], even(e0)|even(e1)<<32)
			le.PutUint64(b[i:], even(o0)|even(o1)<<32)
			le.PutUint64(c[i:], even(e0>>8)|even(e1>>8)<<32)
			le.PutUint64(d[i:], even(o0>>8)|even(o1>>8)<<32)
		}
	case 8:
		for ; i+8 <= n; i += 8 {
			var m [8]uint64
			for j := range m {
				m[j] = le.Uint64(src[8*(i+j):])
			}
			transpose(&m)
			for j, v := range m {
				le.PutUint64(dst[j*n+i:], v)
			}
		}
	}
	for ; i < n; i++ {
		for j := range width {
			dst[j*n+i] = src[i*width+j]
		}
	}
}

// ungroup is the inverse of group.
func ungroup(dst, src []byte, width int) {
	n := len(src) / width
	i := 0
	switch width {
	case 2:
		a, b := src[:n], src[n:2*n]
		for ; i+8 <= n; i += 8 {
			x, y := le.Uint64(a[i:]), le.Uint64(b[i:])
			le.PutUint64(dst[2*i:], spread(x)|spread(y)<<8)
			le.PutUint64(dst[2*i+8:], spread(x>>32)|spread(y>>32)<<8)
		}
	case 4:
		a, b, c, d := src[:n], src[n:2*n], src[2*n:3*n], src[3*n:4*n]
		for ; i+8 <= n; i += 8 {
			x, y, z, w := le.Uint64(a[i:]), le.Uint64(b[i:]), le.Uint64(c[i:]), le.Uint64(d[i:])
			// Elements in pairs of bytes first: low and high halves of four elements each.
			l0, h0 := spread(x)|spread(y)<<8, spread(z)|spread(w)<<8
			l1, h1 := spread(x>>32)|spread(y>>32)<<8, spread(z>>32)|spread(w>>32)<<8
			le.PutUint64(dst[4*i:], wide(l0)|wide(h0)<<16)
			le.PutUint64(dst[4*i+8:], wide(l0>>32)|wide(h0>>32)<<16)
			le.PutUint64(dst[4*i+16:], wide(l1)|wide(h1)<<16)
			le.PutUint64(dst[4*i+24:], wide(l1>>32)|wide(h1>>32)<<16)
		}
	case 8:
		for ; i+8 <= n; i += 8 {
			var m [8]uint64
			for j := range m {
				m[j] = le.Uint64(src[j*n+i:])
			}
			transpose(&m)
			for j, v := range m {
				le.PutUint64(dst[8*(i+j):], v)
			}
		}
	}
	for ; i < n; i++ {
		for j := range width {
			dst[i*width+j] = src[j*n+i]
		}
	}
}

// halves gives the even and the odd ones of 16 bytes.
func halves(s []byte) (e, o uint64) {
	x, y := le.Uint64(s), le.Uint64(s[8:])
	return even(x) | even(y)<<32, even(x>>8) | even(y>>8)<<32
}

// even packs bytes 0, 2, 4, 6 of x into the low half.
func even(x uint64) uint64 {
	x &= 0x00ff00ff00ff00ff
	x = (x | x>>8) & 0x0000ffff0000ffff
	return (x | x>>16) & 0x00000000ffffffff
}

// spread is the inverse of even: it ignores the high half of x.
func spread(x uint64) uint64 {
	x &= 0x00000000ffffffff
	x = (x | x<<16) & 0x0000ffff0000ffff
	return (x | x<<8) & 0x00ff00ff00ff00ff
}

// wide spreads the two low 16-bit words of x.
func wide(x uint64) uint64 {
	x &= 0x00000000ffffffff
	return (x | x<<16) & 0x0000ffff0000ffff
}

// transpose exchanges rows and columns of 8 by 8 bytes.
func transpose(m *[8]uint64) {
	swap := func(i, j int, shift uint, mask uint64) {
		t := (m[i]>>shift ^ m[j]) & mask
		m[j] ^= t
		m[i] ^= t << shift
	}
	for i := range 4 {
		swap(i, i+4, 32, 0x00000000ffffffff)
	}
	for _, i := range [...]int{0, 1, 4, 5} {
		swap(i, i+2, 16, 0x0000ffff0000ffff)
	}
	for i := 0; i < 8; i += 2 {
		swap(i, i+1, 8, 0x00ff00ff00ff00ff)
	}
}
