fn main() -> anyhow::Result<()> {
    use vipgate_tests::vm::*;
    let a: Vec<String> = std::env::args().collect();
    let sources = image::Sources { package: a[1].clone().into(), init: a[2].clone().into() };
    let kernel = kernels::named(&[a[3].clone()])?.remove(0);
    let accelerator = accel::Accelerator::detect(&sources, &kernel)?;
    let bench = Bench { sources, accelerator };
    let t = std::time::Instant::now();
    let lab = VmLab::new(&bench, &kernel, &VmLabOptions::new(1, 1))?;
    println!("{:?} took {:?} lab {:?} image {}", lab.machine().hello, lab.machine().took, t.elapsed(), lab.image_size);
    for line in &a[4..] { let t = std::time::Instant::now(); println!("$ {line}\n{} ({:?})", lab.agent().run(line)?, t.elapsed()); }
    println!("{}", lab.machine().console(20));
    Ok(())
}
