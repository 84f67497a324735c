package target_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// artefacts is a remote tier whose files a test changes behind its back.
type artefacts struct {
	t    *testing.T
	fs   vfs.FS
	dirs map[string]string // of targets, by name
	tier *remotetier.Tier
	all  []*target.Dir // in this process; nil over TCP

	bytes             []byte
	now, older, other catalog.Place // two generations of a blob, and another one of the same size
}

const artefactTargets = 5

// layoutUnderAttack survives two columns that changed places.
var layoutUnderAttack = stripe.Layout{K: 2, M: 2, Unit: 65536}

// inMemory is the targets in this process, over a file system in memory.
func inMemory(t *testing.T, size int) *artefacts {
	m := vfstest.New(vfstest.Options{})
	all, tier, err := dirs(m, artefactTargets)
	if err != nil {
		t.Fatal(err)
	}
	a := &artefacts{t: t, fs: m, dirs: map[string]string{}, tier: tier, all: all}
	for _, d := range all {
		a.dirs[d.Name()] = "/" + d.Name()
		t.Cleanup(func() { _ = d.Close() })
	}
	a.fill(size)
	return a
}

// overTCP is the targets in servers, over the disk.
func overTCP(t *testing.T, size int) *artefacts {
	a := &artefacts{t: t, fs: vfs.OS, dirs: map[string]string{}}
	var infos []remotetier.TargetInfo
	for i := range artefactTargets {
		s := serve(t, fmt.Sprintf("t%d", i), target.ServerOptions{Traffic: traffic.Options{Linger: time.Nanosecond}})
		a.dirs[s.name] = s.dir
		infos = append(infos, remotetier.TargetInfo{Target: s.dial(tcp.Options{})})
	}
	a.tier = remotetier.New(infos, remotetier.Options{Traffic: traffic.Options{Linger: time.Nanosecond}})
	a.fill(size)
	return a
}

func (a *artefacts) fill(size int) {
	a.bytes = random(size, 1)
	for _, p := range []struct {
		place *catalog.Place
		blob  string
		bytes []byte
	}{{&a.older, "run/a", random(size, 2)}, {&a.now, "run/a", a.bytes}, {&a.other, "run/b", random(size, 3)}} {
		var err error
		if *p.place, err = a.tier.Put(a.t.Context(), p.blob, bytes.NewReader(p.bytes), layoutUnderAttack); err != nil {
			a.t.Fatal(err)
		}
	}
}

// file is the path of a place's column.
func (a *artefacts) file(p catalog.Place, c int) string {
	k := remotetier.Key{Blob: p.Blob, Generation: p.Generation, Column: c}
	return filepath.Join(a.dirs[p.Targets[c]], "columns", filepath.FromSlash(k.Path()))
}

func (a *artefacts) read(name string) []byte {
	a.t.Helper()
	f, err := a.fs.Open(name, vfs.Opt{})
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	b := make([]byte, size)
	if _, rerr := f.ReadAt(b, 0); rerr != nil && !errors.Is(rerr, io.EOF) {
		err = rerr
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

func (a *artefacts) write(name string, b []byte) {
	a.t.Helper()
	f, err := a.fs.OpenWrite(name, vfs.Opt{})
	if err != nil {
		a.t.Fatal(err)
	}
	_, err = f.WriteAt(b, 0)
	if err := errors.Join(err, f.Truncate(int64(len(b))), f.Sync(), f.Close()); err != nil {
		a.t.Fatal(err)
	}
}

// attack is what lies where the columns of a place should, after it.
type attack struct {
	name string
	cols map[int][]byte // by column
}

// attacks are the ways to change the files of a place: every part of column c
// flipped, the file cut, lengthened, made anew, and changed for others.
func (a *artefacts) attacks(c, every int) (all []attack) {
	col := a.read(a.file(a.now, c))
	add := func(name string, b []byte) { all = append(all, attack{name, map[int][]byte{c: b}}) }
	for at := 0; at < len(col); at += every {
		b := slices.Clone(col)
		b[at] ^= 1 << (at % 8)
		add(fmt.Sprintf("flip %d", at), b)
	}
	for _, n := range []int{0, 1, 4095, 4096, 4097, 4096 + 65536, len(col) / 2, len(col) - 8192, len(col) - 4096, len(col) - 1} {
		add(fmt.Sprintf("cut to %d", n), col[:n])
	}
	for _, n := range []int{1, 4096, 65536} {
		add(fmt.Sprintf("longer by %d", n), append(slices.Clone(col), make([]byte, n)...))
	}
	add("zeros", make([]byte, len(col)))
	add("noise", random(len(col), 9))
	older, other := a.read(a.file(a.older, c)), a.read(a.file(a.other, c))
	add("the older generation's", older)
	add("the other blob's", other)
	for _, part := range []struct {
		name     string
		from, to int
	}{{"header", 0, 4096}, {"data", 4096, len(col) - 8192}, {"sums", len(col) - 8192, len(col) - 4096}, {"footer", len(col) - 4096, len(col)}} {
		for _, from := range []struct {
			name string
			col  []byte
		}{{"older", older}, {"other", other}} {
			b := slices.Clone(col)
			copy(b[part.from:part.to], from.col[part.from:part.to])
			add(part.name+" of the "+from.name, b)
		}
	}
	next := (c + 1) % 4
	all = append(all, attack{"changed places", map[int][]byte{c: a.read(a.file(a.now, next)), next: col}})
	return all
}

// endure carries an attack out: reads meanwhile are right, a look finds each
// changed column and no other, and mending puts back every byte.
func (a *artefacts) endure(at attack) {
	t := a.t
	t.Helper()
	was := map[int][]byte{}
	for c, b := range at.cols {
		was[c] = a.read(a.file(a.now, c))
		a.write(a.file(a.now, c), b)
	}
	r, err := a.tier.Open(t.Context(), a.now)
	if err != nil {
		t.Errorf("%s: Open: %v", at.name, err)
	} else {
		got := make([]byte, r.Size())
		if _, err := r.ReadAtContext(t.Context(), got, 0); err != nil || !bytes.Equal(got, a.bytes) {
			t.Errorf("%s: a read gives equal=%v, %v", at.name, bytes.Equal(got, a.bytes), err)
		}
		_ = r.Close()
	}
	rep, err := a.tier.Check(t.Context(), a.now, true)
	if err != nil {
		t.Errorf("%s: Check: %v", at.name, err)
	}
	for c, col := range rep.Columns {
		if _, bad := at.cols[c]; bad != col.State.Bad() {
			t.Errorf("%s: Check finds column %d %s: %v", at.name, c, col.State, col.Err)
		}
	}
	m, err := a.tier.Mend(t.Context(), a.now, remotetier.MendOptions{Deep: true})
	if err != nil || m.Moved() || len(m.Left) > 0 || len(m.Columns) != len(at.cols) {
		t.Errorf("%s: Mend = %+v, %v", at.name, m, err)
	}
	for c, b := range was {
		if !bytes.Equal(a.read(a.file(a.now, c)), b) {
			t.Errorf("%s: column %d is not what it was", at.name, c)
			a.write(a.file(a.now, c), b)
		}
	}
}

// TestColumnsUnderAttack changes every part of a column's file in every way.
func TestColumnsUnderAttack(t *testing.T) {
	a := inMemory(t, 2*2*65536+9000)
	n := 0
	for _, c := range []int{0, 3} { // data and parity
		for _, at := range a.attacks(c, 997) {
			a.endure(at)
			n++
		}
	}
	t.Logf("%d attacks", n)
}

// TestColumnsUnderAttackOverTCP does the same to servers' disks, less often.
func TestColumnsUnderAttackOverTCP(t *testing.T) {
	a := overTCP(t, 2*2*65536+9000)
	for _, at := range a.attacks(1, 20011) {
		a.endure(at)
	}
}

// TestEveryByteOfHeaderSumsAndFooter flips each in turn: there is none whose
// change is not seen where the column lies.
func TestEveryByteOfHeaderSumsAndFooter(t *testing.T) {
	a := inMemory(t, 100_000)
	c := 2
	name, k := a.file(a.now, c), remotetier.Key{Blob: a.now.Blob, Generation: a.now.Generation, Column: c}
	col := a.read(name)
	f, err := a.fs.OpenWrite(name, vfs.Opt{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := 0; at < len(col); at++ {
		if at >= 4096 && at < len(col)-8192 && at%101 != 0 {
			continue // of the data, some
		}
		if _, err := f.WriteAt([]byte{col[at] ^ 1<<(at%8)}, int64(at)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.tier.CheckColumn(t.Context(), a.now.Targets[c], k); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("byte %d flipped: CheckColumn = %v, want ErrCorrupt", at, err)
		}
		if _, err := f.WriteAt(col[at:at+1], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.tier.CheckColumn(t.Context(), a.now.Targets[c], k); err != nil {
		t.Error(err)
	}
}

// TestSmallRecordsUnderAttack: a copy that is bad, or an older one under the
// new one's name, is never taken for the record.
func TestSmallRecordsUnderAttack(t *testing.T) {
	a := inMemory(t, 5000)
	put := func(text string) catalog.Place {
		p, err := a.tier.PutSmall(t.Context(), "run/set.json", []byte(text), 3)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	old := put("the older record")
	older := a.read(a.file(old, 0)) // PutSmall removes it
	p := put("the newer record")
	isNew := func(what string) {
		t.Helper()
		if b, _, err := a.tier.GetSmall(t.Context(), "run/set.json"); err != nil || string(b) != "the newer record" {
			t.Errorf("%s: GetSmall = %q, %v", what, b, err)
		}
	}
	col := a.read(a.file(p, 0))
	ways := map[string][]byte{"older": older, "cut": col[:5000], "empty": {}, "longer": append(slices.Clone(col), 0), "of another copy": a.read(a.file(p, 1))}
	for at := 0; at < len(col); at += 61 {
		b := slices.Clone(col)
		b[at] ^= 1 << (at % 8)
		ways[fmt.Sprintf("flip %d", at)] = b
	}
	for name, b := range ways {
		a.write(a.file(p, 0), b)
		isNew(name)
		for f, err := range a.tier.Scan(t.Context(), "run/set.json") {
			if err != nil {
				t.Errorf("%s: Scan: %v", name, err)
				continue
			}
			m, err := a.tier.Mend(t.Context(), f.Place, remotetier.MendOptions{Deep: true})
			if err != nil || len(m.Columns) != 1 || m.Columns[0].Column != 0 || m.Moved() {
				t.Errorf("%s: Mend = %+v, %v", name, m, err)
			}
		}
		if !bytes.Equal(a.read(a.file(p, 0)), col) {
			t.Errorf("%s: the copy is not what it was", name)
			a.write(a.file(p, 0), col)
		}
	}
	for c := range 3 {
		a.write(a.file(p, c), older)
	}
	if b, _, err := a.tier.GetSmall(t.Context(), "run/set.json"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with older copies everywhere: GetSmall = %q, %v; want an error", b, err)
	}
}

// TestTargetFilesUnderAttack: the name of a directory, changed in any way, is
// refused or is still the same name; what is in lock and staging does not matter.
func TestTargetFilesUnderAttack(t *testing.T) {
	m := vfstest.New(vfstest.Options{})
	a := &artefacts{t: t, fs: m}
	open := func(name string) error {
		d, err := target.OpenDir(m, "/"+name, name)
		if err == nil {
			_, err = d.UID()
			err = errors.Join(err, d.Close())
		}
		return err
	}
	for _, name := range []string{"t0", "t1"} {
		if err := open(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"/t0/target.id", "/t0/target.uid"} {
		id := a.read(file)
		var ways [][]byte
		for at := range id {
			for bit := range 8 {
				b := slices.Clone(id)
				b[at] ^= 1 << bit
				ways = append(ways, b)
			}
			ways = append(ways, id[:at], append(slices.Clone(id), id[:at+1]...))
		}
		ways = append(ways, a.read("/t1/target.id"), random(1<<16, 1))
		refused := 0
		for _, b := range ways {
			a.write(file, b)
			err := open("t0")
			switch {
			case err != nil && !errors.Is(err, catalog.ErrCorrupt) && !errors.Is(err, catalog.ErrConflict):
				t.Errorf("%s as %.40q: %v, want ErrCorrupt or ErrConflict", file, b, err)
			case err != nil:
				refused++
			case filepath.Base(file) == "target.id": // another uid is another directory, which the catalog refuses
				t.Errorf("%s as %.40q is taken for %q", file, b, id)
			}
		}
		a.write(file, id)
		t.Logf("%s: %d of %d refused", file, refused, len(ways))
	}
	for _, b := range [][]byte{{}, random(10000, 1)} {
		a.write("/t0/lock", b)
		f, err := m.Create("/t0/staging/7", vfs.Opt{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(random(10000, 2), 0)
		if err := errors.Join(err, f.Sync(), f.Close(), m.SyncDir("/t0/staging"), open("t0")); err != nil {
			t.Errorf("with a changed lock: %v", err)
		}
		if left, err := m.ReadDir("/t0/staging"); err != nil || len(left) > 0 {
			t.Errorf("staging has %v, %v", left, err)
		}
	}
}

// TestStagedFileUnderAttack: what happens to a column between its bytes and
// its name is found by the first look.
func TestStagedFileUnderAttack(t *testing.T) {
	a := inMemory(t, 100_000)
	for name, harm := range map[string]func(b []byte) []byte{
		"flip":   func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		"cut":    func(b []byte) []byte { return b[:len(b)-4096] },
		"longer": func(b []byte) []byte { return append(b, 1) },
		"other":  func(b []byte) []byte { return a.read(a.file(a.other, 1)) },
	} {
		c := 1
		col := a.read(a.file(a.now, c))
		staged := a.stage(a.now.Targets[c], remotetier.Key{Blob: a.now.Blob, Generation: a.now.Generation, Column: c}, col, harm)
		if !staged {
			t.Fatalf("%s: no staged file was found", name)
		}
		rep, err := a.tier.Check(t.Context(), a.now, true)
		if err != nil || !rep.Columns[c].State.Bad() || rep.Spare != 1 {
			t.Errorf("%s: Check = %+v, %v", name, rep.Columns, err)
		}
		if _, err := a.tier.Mend(t.Context(), a.now, remotetier.MendOptions{Deep: true}); err != nil || !bytes.Equal(a.read(a.file(a.now, c)), col) {
			t.Errorf("%s: Mend: %v", name, err)
		}
	}
}

// stage writes a column through the target, and harms its staged file before
// it is committed.
func (a *artefacts) stage(name string, k remotetier.Key, col []byte, harm func([]byte) []byte) (found bool) {
	t := a.t
	t.Helper()
	d := a.all[slices.IndexFunc(a.all, func(d *target.Dir) bool { return d.Name() == name })]
	w, err := d.Create(t.Context(), k, int64(len(col)), remotetier.CreateReplace)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	b := vfs.AlignedBuffer(len(col))
	copy(b, col)
	if err := w.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(a.dirs[name], "staging")
	left, err := a.fs.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		a.write(filepath.Join(dir, e.Name()), harm(a.read(filepath.Join(dir, e.Name()))))
		found = true
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return found
}
