//! The head loss on the CPU, in two phases: the targets and the positives, which give what to
//! divide by; then the classification loss of all anchors, and the gradients.
//!
//! Both phases go over blocks on the threads of a [`Pool`](crate::cpu::Pool). Which elements a block has
//! depends on shapes and layouts alone, and sums are added up in the order of the blocks: so the
//! result does not depend on the number of threads.

mod classes;
mod order;
mod positives;

use half::{bf16, f16};

use self::classes::{Classes, Elements, OfClasses, Sum};
use self::order::{Block, CHANNEL, IMAGE, Order, blocks};
use self::positives::{Anchors, Finish, Frame, Given, Positive, Target, anchors, both};
use super::{Gradients, HeadCall, LOSSES, Layout, Layouts, Level, Normalisers};
use crate::cpu::map;
use crate::element::{Element, compiled, same_mut};
use crate::memory::Host;
use crate::status::Status;
use crate::vector::Isa;

compiled! {
    /// The head loss on the CPU: what depends on the type of the class logits or on that of the box logits.
    HeadOnCpu: Element for [f64, f32, f16, bf16] {
        fn anchors(
            given: &Given<<Self as Element>::Loss>,
            finish: &Finish,
        ) -> Anchors<<Self as Element>::Loss> = Given::anchors;
        fn tops(frame: &Frame, cls: &[Self], layout: &Layout, targets: &[Target]) -> Vec<f64> = Frame::tops;
        fn positives(
            frame: &Frame,
            boxes: &[Self],
            layout: &Layout,
            targets: Vec<Target>,
            tops: &[f64],
        ) -> Vec<Positive> = Frame::positives;
        fn class_sum(
            classes: OfClasses<<Self as Element>::Loss>,
            logits: &[Self],
            grad: Option<&mut [Self]>,
        ) -> Sum = class_sum;
        fn box_sum(boxes: &OfBoxes, logits: &[Self], grad: &mut [Self]) -> Sum = box_sum;
    }
}

/// Phase one: the anchors of each level.
fn look<T: Element, U: Element>(call: &HeadCall<Host, T, U>) -> Vec<Anchors<T::Loss>> {
    let mut first = 0;
    let of_level = |level: &Level<Host, T, U>| {
        let of_level = anchors(call, level, first);
        first += of_level.weights.len();
        of_level
    };
    call.levels.iter().map(of_level).collect()
}

/// What these anchors say to divide by.
fn of_anchors<T: Element, U: Element>(
    call: &HeadCall<Host, T, U>,
    anchors: &[Anchors<T::Loss>],
) -> Normalisers {
    let mut of_images = vec![0usize; call.batch];
    let mut box_weights = 0.0;
    for (level, anchors) in call.levels.iter().zip(anchors) {
        for positive in &anchors.positives {
            of_images[positive.anchor / level.positions()] += 1;
        }
        box_weights += anchors.sums()[0];
    }
    let least = usize::from(call.head.normaliser.rule().image_has_one);
    let positives = of_images.iter().map(|&count| count.max(least)).sum::<usize>() as f64;
    Normalisers { positives, box_weights }
}

pub(super) fn normalisers<T: Element, U: Element>(call: &HeadCall<Host, T, U>) -> Normalisers {
    of_anchors(call, &look(call))
}

/// Both phases; the losses are `[levels, 3]`, and so are upstream gradients.
pub(super) fn run<T: Element, U: Element>(
    mut call: HeadCall<Host, T, U>,
    losses: Option<&mut [T::Loss]>,
    mut gradients: Option<&mut [Gradients<Host, T, U>]>,
) -> Status {
    let anchors = look(&call);
    let Normalisers { positives, box_weights } =
        call.normalisers.unwrap_or_else(|| of_anchors(&call, &anchors));
    let head = call.head;
    let by = head.normaliser.rule().factors(positives, box_weights);
    let weights = [head.qfl.loss_weight, head.iou_weight, head.dfl.loss_weight];
    let factors = [0, 1, 2].map(|i| weights[i] * by[i]);

    let mut losses = losses.map(|losses| losses.chunks_exact_mut(LOSSES));
    let mut owner = 0; // of the buffers that a level's gradients are in
    let (mut status, mut not_finite) = (Status::default(), false);
    for (i, (level, anchors)) in call.levels.iter().zip(&anchors).enumerate() {
        let upstream = |of: usize| call.upstream.map_or(1.0, |upstream| upstream[LOSSES * i + of].to_f64());
        let grad_factors = [0, 1, 2].map(|of| factors[of] * call.grad_scale * upstream(of));
        let gradients = gradients.as_deref_mut().map(|gradients| {
            owner = if matches!(gradients[i], Gradients::Shared) { owner } else { i };
            (call.layouts_of_gradients(i), &mut gradients[owner])
        });
        let sum = run_level(&call, level, anchors, grad_factors, gradients);
        let [_, iou, dfl] = anchors.sums();
        let losses = losses.as_mut().and_then(Iterator::next).into_iter().flatten();
        for ((to, sum), factor) in losses.zip([sum.loss, iou, dfl]).zip(factors) {
            *to = T::Loss::from_f64(sum * factor);
        }
        status.append(&anchors.status);
        not_finite |= sum.not_finite;
    }
    if let Some(found_inf) = &mut call.found_inf
        && not_finite
    {
        found_inf[0] = 1.0;
    }
    status
}

/// The sum of the classification losses of a level; writes its gradients.
fn run_level<T: Element, U: Element>(
    call: &HeadCall<Host, T, U>,
    level: &Level<Host, T, U>,
    anchors: &Anchors<T::Loss>,
    [of_cls, of_iou, of_dfl]: [f64; LOSSES],
    gradients: Option<(Layouts, &mut Gradients<Host, T, U>)>,
) -> Sum {
    let (cls, boxes) = both(&level.logits);
    // Elements are in the order of the gradient's places, if there is one.
    let orders = |logits: Layout, gradient: Option<Layout>, channels| {
        let (extents, gradient) = ([call.batch, channels, level.positions()], gradient.unwrap_or(logits));
        let rows = gradient.pitch(extents[2]).or(logits.pitch(extents[2]));
        let order = Order::new(gradient, extents, rows.map(|rows| rows.width));
        [order.of(logits), order]
    };
    let layouts = gradients.as_ref().map(|&(layouts, _)| layouts);
    let elements = Elements {
        scores: level.targets.scores,
        weights: level.targets.element_weights,
        class_weights: call.class_weights,
    };
    let of_classes = OfClasses {
        isa: Isa::detect(),
        qfl: &call.head.qfl,
        orders: orders(level.cls_layout, layouts.map(|layouts| layouts.cls), call.classes),
        anchors,
        elements,
        factor: of_cls,
        look_for_inf: call.found_inf.is_some(),
    };
    let Some((layouts, gradients)) = gradients else {
        return T::class_sum(of_classes, cls, None);
    };
    let of_boxes = OfBoxes {
        orders: orders(level.box_layout, Some(layouts.boxes), call.head.box_channels()),
        positives: &anchors.positives,
        bins: call.head.bins(),
        factors: [of_iou, of_dfl],
    };
    let sum = T::class_sum(of_classes, cls, Some(gradients.cls()));
    let boxes = U::box_sum(&of_boxes, boxes, gradients.boxes());
    Sum { not_finite: sum.not_finite || boxes.not_finite, ..sum }
}

impl<T: Element, U: Element> Gradients<'_, Host, T, U> {
    /// The buffer that the gradients of the class logits are in.
    fn cls(&mut self) -> &mut [T] {
        match self {
            Gradients::Separate { cls, .. } => cls,
            Gradients::Joint(both) => both,
            Gradients::Shared => unreachable!("the buffers are another level's"),
        }
    }

    /// The buffer that the gradients of the box logits are in.
    fn boxes(&mut self) -> &mut [U] {
        match self {
            Gradients::Separate { boxes, .. } => boxes,
            Gradients::Joint(both) => same_mut(both).expect("joint gradients are of one type"),
            Gradients::Shared => unreachable!("the buffers are another level's"),
        }
    }
}

/// Over all class logits; writes their gradients.
fn class_sum<T: Element>(classes: OfClasses<T::Loss>, logits: &[T], grad: Option<&mut [T]>) -> Sum {
    let classes = Classes::new(classes, logits);
    in_blocks(&classes.of.orders[1], grad, |block| classes.run(block))
}

/// Writes the gradients of all box logits.
fn box_sum<T: Element>(boxes: &OfBoxes, logits: &[T], grad: &mut [T]) -> Sum {
    in_blocks(&boxes.orders[1], Some(grad), |block| boxes.run(logits, block))
}

/// Runs `run` over the blocks of a tensor, on all threads if it is large, and adds up.
fn in_blocks<T: Element>(
    order: &Order,
    buffer: Option<&mut [T]>,
    run: impl Fn(&mut Block<T>) -> Sum + Send + Sync,
) -> Sum {
    let blocks = blocks(order, buffer).into_iter();
    let sums = map(order.elements(), blocks, |mut block| run(&mut block));
    sums.iter().fold(Sum::default(), |total, sum| Sum {
        loss: total.loss + sum.loss,
        not_finite: total.not_finite || sum.not_finite,
    })
}

/// The box logits of a level, but for themselves.
pub struct OfBoxes<'a> {
    /// Of the logits, and of the gradient: elements have the same numbers in both.
    orders: [Order; 2],
    positives: &'a [Positive],
    /// Channels of a side.
    bins: usize,
    /// Of the box loss and of the distribution loss.
    factors: [f64; 2],
}

impl OfBoxes<'_> {
    fn run<T: Element>(&self, logits: &[T], block: &mut Block<T>) -> Sum {
        let ([of_logits, order], elements, start) = (&self.orders, &block.elements, block.start);
        let Some(grad) = block.part.as_deref_mut() else { return Sum::default() };
        order.fill(elements.clone(), T::from_f64(0.0), grad, start);

        let bounds = order.bounds(elements);
        let (among, positions) = (order.positions(&bounds), order.extents()[2]);
        let positives = self.positives;
        let before = |anchor| positives.partition_point(|positive| positive.anchor < anchor);
        let mut not_finite = false;
        for image in bounds[IMAGE].clone() {
            let of_image = [among.start, among.end].map(|at| image * positions + at);
            for positive in &positives[before(of_image[0])..before(of_image[1])] {
                let Some(of_box) = positive.box_factor else { continue };
                let factors = self.factors.map(|factor| factor * of_box);
                for channel in bounds[CHANNEL].clone() {
                    let at = order.coordinates_of([image, channel, positive.anchor % positions]);
                    if elements.contains(&order.number(at)) {
                        let side = &positive.sides[channel / self.bins];
                        let z = logits[of_logits.place_of(at)].to_f64();
                        let stored = T::from_f64(side.grad(channel % self.bins, z, factors));
                        grad[order.place_of(at) - start] = stored;
                        not_finite |= !stored.to_f64().is_finite();
                    }
                }
            }
        }
        Sum { loss: 0.0, not_finite }
    }
}
