package build

// Learned waits until what a go build has begun in the background is done.
func (d *Direct) Learned() { d.tasks.Wait() }

// Objects is the folder of object files.
func (d *Direct) Objects() string { return d.dir }
