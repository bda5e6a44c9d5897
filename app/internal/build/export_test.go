package build

// Learned waits for the listing that a go build has begun in the background.
func (d *Direct) Learned() { d.tasks.Wait() }

// Objects returns the folder of object files.
func (d *Direct) Objects() string { return d.dir }
