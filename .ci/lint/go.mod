module lint

go 1.26.0

require (
	github.com/Antonboom/errname v1.1.1
	github.com/polyfloyd/go-errorlint v1.8.0
	github.com/sivchari/containedctx v1.0.3
	golang.org/x/tools v0.42.0
)
