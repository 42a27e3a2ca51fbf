//! The loops, assignments, macros and calls of a template, wherever they stand in it.

use minijinja::machinery::ast::{Call, CallArg, Expr, ForLoop, Macro, Set, Stmt};

/// A loop and the macros around it, outermost first, by their index.
pub(crate) struct Loop<'t, 's> {
    pub(crate) node: &'t ForLoop<'s>,
    pub(crate) macros: Vec<usize>,
}

/// What a template consists of, in the order of its text.
#[derive(Default)]
pub(crate) struct Syntax<'t, 's> {
    pub(crate) loops: Vec<Loop<'t, 's>>,
    pub(crate) sets: Vec<&'t Set<'s>>,
    pub(crate) macros: Vec<&'t Macro<'s>>,
    pub(crate) calls: Vec<&'t Call<'s>>,
    /// The macros around the statement that is being read.
    around: Vec<usize>,
}

impl<'t, 's> Syntax<'t, 's> {
    pub(crate) fn of(root: &'t Stmt<'s>) -> Self {
        let mut syntax = Self::default();
        syntax.statement(root);
        syntax
    }

    fn statement(&mut self, node: &'t Stmt<'s>) {
        match node {
            Stmt::Template(node) => self.statements(&node.children),
            Stmt::EmitExpr(node) => self.expression(&node.expr),
            Stmt::ForLoop(node) => {
                self.loops.push(Loop {
                    node,
                    macros: self.around.clone(),
                });
                self.expression(&node.iter);
                self.expressions(&node.filter_expr);
                self.statements(&node.body);
                self.statements(&node.else_body);
            }
            Stmt::IfCond(node) => {
                self.expression(&node.expr);
                self.statements(&node.true_body);
                self.statements(&node.false_body);
            }
            Stmt::WithBlock(node) => {
                self.expressions(node.assignments.iter().map(|(_, value)| value));
                self.statements(&node.body);
            }
            Stmt::Set(node) => {
                self.sets.push(node);
                self.expression(&node.expr);
            }
            Stmt::SetBlock(node) => {
                self.expressions(&node.filter);
                self.statements(&node.body);
            }
            Stmt::AutoEscape(node) => self.statements(&node.body),
            Stmt::FilterBlock(node) => {
                self.expression(&node.filter);
                self.statements(&node.body);
            }
            Stmt::Block(node) => self.statements(&node.body),
            Stmt::Macro(node) => self.definition(node),
            Stmt::CallBlock(node) => {
                self.call(&node.call);
                self.statements(&node.macro_decl.body);
            }
            Stmt::Do(node) => self.call(&node.call),
            // Raw text and loop controls hold nothing; chat templates cannot load other files.
            _ => {}
        }
    }

    fn statements(&mut self, nodes: &'t [Stmt<'s>]) {
        for node in nodes {
            self.statement(node);
        }
    }

    fn definition(&mut self, node: &'t Macro<'s>) {
        self.around.push(self.macros.len());
        self.macros.push(node);
        self.expressions(&node.defaults);
        self.statements(&node.body);
        self.around.pop();
    }

    fn expression(&mut self, expr: &'t Expr<'s>) {
        match expr {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::Slice(node) => {
                self.expression(&node.expr);
                self.expressions([&node.start, &node.stop, &node.step].into_iter().flatten());
            }
            Expr::UnaryOp(node) => self.expression(&node.expr),
            Expr::BinOp(node) => self.expressions([&node.left, &node.right]),
            Expr::Compare(node) => {
                self.expression(&node.expr);
                self.expressions(node.ops.iter().map(|op| &op.expr));
            }
            Expr::IfExpr(node) => {
                self.expressions([&node.test_expr, &node.true_expr]);
                self.expressions(&node.false_expr);
            }
            Expr::Filter(node) => {
                self.expressions(&node.expr);
                self.arguments(&node.args);
            }
            Expr::Test(node) => {
                self.expression(&node.expr);
                self.arguments(&node.args);
            }
            Expr::GetAttr(node) => self.expression(&node.expr),
            Expr::GetItem(node) => self.expressions([&node.expr, &node.subscript_expr]),
            Expr::Call(node) => self.call(node),
            Expr::List(node) => self.expressions(&node.items),
            Expr::Tuple(node) => self.expressions(&node.items),
            Expr::Map(node) => self.expressions(node.keys.iter().chain(&node.values)),
        }
    }

    fn expressions(&mut self, nodes: impl IntoIterator<Item = &'t Expr<'s>>)
    where
        's: 't,
    {
        for node in nodes {
            self.expression(node);
        }
    }

    fn call(&mut self, node: &'t Call<'s>) {
        self.calls.push(node);
        self.expression(&node.expr);
        self.arguments(&node.args);
    }

    fn arguments(&mut self, nodes: &'t [CallArg<'s>]) {
        for node in nodes {
            match node {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => self.expression(value),
            }
        }
    }
}
