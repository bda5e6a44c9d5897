// Command lint runs the analyzers of the house rules that neither go vet nor
// staticcheck has, as a tool of go vet: see the Makefile.
package main

import (
	"github.com/Antonboom/errname/pkg/analyzer"
	"github.com/polyfloyd/go-errorlint/errorlint"
	"github.com/sivchari/containedctx"
	"golang.org/x/tools/go/analysis/unitchecker"
)

func main() {
	unitchecker.Main(analyzer.New(), containedctx.Analyzer, errorlint.NewAnalyzer())
}
