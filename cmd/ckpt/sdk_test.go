package main

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/sdk/ckpt"
)

// These tests drive package ckpt against a real daemon; its own tests use a
// peer that misbehaves.

// saveBytes saves one U8 tensor of data as rank 0 of 1.
func saveBytes(t testing.TB, c *ckpt.Client, step int64, data []byte) *ckpt.Set {
	t.Helper()
	s, err := c.Save(t.Context(), ckpt.At("sdk", step))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Tensor("x", ckpt.U8, []int64{int64(len(data))}, data); err != nil {
		t.Fatal(err)
	}
	set, err := s.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func readBack(t testing.TB, c *ckpt.Client, ref string, want []byte, opts ...ckpt.OpenOption) {
	t.Helper()
	r, err := c.Open(t.Context(), ref, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x, err := r.Tensor("x")
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, r.Manifest().Shards[0].Size)
	if err := r.ReadShard(t.Context(), 0, whole); err != nil || !bytes.Equal(whole[x.Offset:], want) {
		t.Errorf("%s: ReadShard: %v", ref, err)
	}
	part := make([]byte, len(want)/3)
	if _, err := r.ReadAt("x", part, int64(len(want)/2)); err != nil || !bytes.Equal(part, want[len(want)/2:][:len(part)]) {
		t.Errorf("%s: ReadAt: %v", ref, err)
	}
	s, err := r.Shard(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if b, err := s.Bytes(); err != nil || !bytes.Equal(b, whole) {
		t.Errorf("%s: Bytes: %v", ref, err)
	}
}

func TestSDKShardLargerThanTheArena(t *testing.T) {
	d := startDaemon(t, "--arena", "64MiB")
	c := d.dial()
	want := random(150<<20+12345, 1)
	for step := range int64(2) { // the second time over held segments
		set := saveBytes(t, c, step, want)
		if err := set.Wait(t.Context(), ckpt.Local); err != nil {
			t.Fatal(err)
		}
		readBack(t, c, set.String(), want)
	}
}

func TestSDKEveryTier(t *testing.T) {
	d := startDaemon(t)
	c := d.dial()
	want := random(70<<20+1, 2)
	set := saveBytes(t, c, 1, want)
	if err := set.Wait(t.Context(), ckpt.Verified); err != nil || set.Level != ckpt.Verified {
		t.Fatalf("%v, %v", set.Level, err)
	}
	for _, from := range []string{"", "local", "remote"} {
		readBack(t, c, "sdk@latest:verified", want, ckpt.From(from))
	}
	readBack(t, c, "sdk@1", want, ckpt.NoCheck())
	// A flipped byte in the local file is read around.
	detail, err := c.Set(t.Context(), "sdk@1", false)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(detail.Shards[0].Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte{want[40<<20] + 1, want[0] ^ 7, 3}, 40<<20)
	f.Close()
	readBack(t, c, "sdk@1", want)
	if why := d.must("why", "sdk@1"); !bytes.Contains([]byte(why), []byte("quarantined")) {
		t.Errorf("the bad copy is not in the story:\n%s", why)
	}
}

func TestSDKSealedShardOutlivesEverybody(t *testing.T) {
	d := startDaemon(t)
	want := random(40<<20, 3)
	c := d.dial()
	var sets []*ckpt.Set
	for rank := range 4 {
		s, err := c.Save(t.Context(), ckpt.At("sdk", 1), ckpt.Rank(rank, 4), ckpt.Launch("l"))
		if err != nil {
			t.Fatal(err)
		}
		s.Tensor("x", ckpt.U8, []int64{10 << 20}, want[rank*10<<20:][:10<<20])
		set, err := s.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		sets = append(sets, set)
	}
	d.stop(syscall.SIGKILL)
	c.Close()
	d.start()
	if err := sets[0].Wait(t.Context(), ckpt.Local); err != nil {
		t.Fatal(err)
	}
	r, err := d.dial().Open(t.Context(), "sdk@latest")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for rank := range 4 {
		b := make([]byte, r.Manifest().Shards[rank].Size)
		if err := r.ReadShard(t.Context(), rank, b); err != nil || !bytes.Equal(b[len(b)-10<<20:], want[rank*10<<20:][:10<<20]) {
			t.Errorf("rank %d: %v", rank, err)
		}
	}
}

func TestSDKManySavesAndLoadsAtOnce(t *testing.T) {
	d := startDaemon(t, "--remote", "none", "--arena", "64MiB")
	c := d.dial()
	var wg sync.WaitGroup
	for i := range int64(6) {
		wg.Go(func() {
			for j := range int64(3) {
				want := random(20<<20, byte(10*i+j))
				s, err := c.Save(t.Context(), ckpt.At(fmt.Sprint("run", i), j))
				if err != nil {
					t.Error(err)
					return
				}
				s.Tensor("x", ckpt.U8, []int64{int64(len(want))}, want)
				set, err := s.Commit(t.Context())
				s.Close()
				if err == nil {
					err = set.Wait(t.Context(), ckpt.Local)
				}
				if err != nil {
					t.Errorf("run%d@%d: %v", i, j, err)
					return
				}
				readBack(t, c, set.String(), want)
			}
		})
	}
	wg.Wait()
}

const benchSize = 512 << 20

// fresh is memory that no page has been touched of.
func fresh(b *testing.B, n int) []byte {
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// BenchmarkStall compares Save+Commit with a copy into mapped memory.
func BenchmarkStall(b *testing.B) {
	d := startDaemon(b, "--remote", "none", "--arena", "2GiB")
	c := d.dial()
	data := random(benchSize, 5)
	dst := fresh(b, benchSize)
	copy(dst, data)
	step := int64(0)
	b.Run("memcpy", func(b *testing.B) {
		b.SetBytes(benchSize)
		for b.Loop() {
			copy(dst, data)
		}
	})
	b.Run("save", func(b *testing.B) {
		b.SetBytes(benchSize)
		for b.Loop() {
			set := saveBytes(b, c, step, data)
			step++
			b.StopTimer()
			b.Logf("stall %v", set.Stall)
			if err := set.Wait(b.Context(), ckpt.Local); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Remove(b.Context(), fmt.Sprintf("sdk@%d", max(step-2, 0))); err != nil && step > 2 {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

// BenchmarkReadShard compares ReadShard with a plain O_DIRECT read.
func BenchmarkReadShard(b *testing.B) {
	d := startDaemon(b, "--remote", "none", "--arena", "1GiB")
	c := d.dial()
	set := saveBytes(b, c, 1, random(benchSize, 5))
	if err := set.Wait(b.Context(), ckpt.Local); err != nil {
		b.Fatal(err)
	}
	detail, err := c.Set(b.Context(), "sdk@1", false)
	if err != nil {
		b.Fatal(err)
	}
	r, err := c.Open(b.Context(), "sdk@1")
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	each := func(name string, read func(p []byte) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(set.Size)
			for b.Loop() {
				b.StopTimer()
				p := fresh(b, int(set.Size))
				b.StartTimer()
				if err := read(p); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				unix.Munmap(p)
				b.StartTimer()
			}
		})
	}
	for range 2 {
		each("plain", func(p []byte) error {
			fd, err := unix.Open(detail.Shards[0].Path, unix.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for off := 0; off < len(p)&^4095; off += 8 << 20 {
				if _, err := unix.Pread(fd, p[off:min(off+8<<20, len(p)&^4095)], int64(off)); err != nil {
					return err
				}
			}
			return nil
		})
		each("ReadShard", func(p []byte) error { return r.ReadShard(b.Context(), 0, p) })
	}
}
