import {execFile} from 'node:child_process';
import {cp, mkdir} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {buildAgent} from '../support/agent.ts';
import {until} from '../support/mesh.ts';
import {address, toolPath} from '../support/netns.ts';
import {
	type BootedWorld,
	buildPackages,
	makeBootedWorld,
	type Packages,
	skippedWithoutMachines,
	untilActive,
} from './world.ts';

const run = promisify(execFile);

test.serial(
	'repository › a machine joins with packages from one; upgrades keep edited settings and exchange others; purged, what the admin made stays',
	async t => {
		if (await skippedWithoutMachines(t)) return;
		const missing = ['apt-ftparchive', 'gpg', 'gpg-agent', 'gpgconf'].filter(name => toolPath(name) === undefined);
		if (missing.length > 0) {
			t.log(`skipped: needs ${missing.join(', ')}`);
			return t.pass();
		}
		const packages = await buildPackages();
		const world = await makeBootedWorld(t);
		const repository = await startRepository(t, world);
		await repository.publish(packages);

		const words = ['cloud-config', await world.bundle('a'), '--package', 'onramp', '--proxy-concurrency', '1'];
		const {stdout} = await run(process.execPath, [await buildAgent(), ...words, '--proxy-termination-drain', '2s']);
		const source = `deb [signed-by=/etc/apt/keyrings/onramp.asc] ${repository.url} ./`;
		const a = await world.boot('a', {
			seed: {
				'user-data': `${stdout}apt:\n  sources:\n    onramp.list:\n      source: ${source}\n`,
				'meta-data': 'instance-id: i-1\n',
			},
			files: {'/etc/apt/keyrings/onramp.asc': repository.keyPath},
		});
		const {machine} = a;
		t.regex(await machine.must('cloud-init status --wait'), /status: done/);
		await untilActive(a, 'onramp-ready.target');
		const history = await machine.must("grep -ho '^Install: .*' /var/log/apt/history.log");
		t.regex(history, /\bonramp:amd64 \(0\.1\.0-1\)/);
		t.regex(history, /\bonramp-envoy:amd64 \([^)]*, automatic\)/);
		t.is(history.match(/:amd64/g)?.length, 2, `nothing else was needed: ${history}`);

		const agent = () => machine.show('onramp-agent.service', 'MainPID');
		const upgrade = async (version: string, setting: string): Promise<void> => {
			await repository.publish(await buildPackages({version, names: 'onramp', setting}));
			const before = await agent();
			// As unattended-upgrades has it.
			const options =
				'-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-unsafe-io';
			await machine.must(`apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -y ${options} upgrade`);
			t.regex(await machine.must('dpkg -s onramp'), new RegExp(`^Version: ${version}-1$`, 'm'));
			await until('another agent', async () => !['0', before].includes(await agent()));
			await machine.must('onramp status --wait 60s');
		};
		const config = () => machine.must('cd /etc/onramp; tail -n1 onramp.yaml*');
		await upgrade('0.2.0', 'log: {level: debug}');
		t.is(await config(), 'log: {level: debug}\n', 'settings that nobody has edited are the new ones');
		await machine.must("echo '# edited' >> /etc/onramp/onramp.yaml");
		await upgrade('0.3.0', 'log: {level: warn}');
		t.is(
			await config(),
			'==> onramp.yaml <==\n# edited\n\n==> onramp.yaml.dpkg-dist <==\nlog: {level: warn}\n',
			'what was edited stays, and the new settings lie beside it',
		);

		await machine.must('echo mine > /etc/onramp/mine.yaml; apt-get -y remove onramp');
		await machine.must('cd /etc/onramp; grep edited onramp.yaml; cat mine.yaml bundle/cluster.env');
		await machine.must('apt-get -y --purge autoremove onramp');
		t.is(
			await machine.must('find /etc/onramp /usr/lib/onramp /var/lib/onramp 2>/dev/null || true'),
			'/etc/onramp\n/etc/onramp/mine.yaml\n',
		);
		t.is(await machine.must('stat -c %U:%G /etc/onramp; cat /etc/onramp/mine.yaml'), 'root:root\nmine\n');
	},
);

interface Repository {
	readonly url: string;
	/** What it is signed with. */
	readonly keyPath: string;
	/** Adds the debs. */
	publish(packages: Packages): Promise<void>;
}

/** A flat repository, made as docs/install.md has it, behind a web server on the far side. */
async function startRepository(t: ExecutionContext, world: BootedWorld): Promise<Repository> {
	const [directory, home] = [join(world.directory, 'apt'), join(world.directory, 'gnupg')];
	await mkdir(directory);
	await mkdir(home, {mode: 0o700});
	const env = {...process.env, GNUPGHOME: home};
	const sh = (script: string) => run('sh', ['-ec', script], {cwd: directory, env, maxBuffer: 2 ** 26});
	t.teardown(() => sh('gpgconf --kill gpg-agent'));
	const who = 'onramp test <test@onramp.invalid>';
	const keyPath = join(directory, 'onramp.asc');
	await sh(
		`gpg -q --batch --passphrase '' --quick-generate-key '${who}' ed25519 sign 1d; gpg --armor --export > ${keyPath}`,
	);
	const port = 8000;
	const serve = `
		const {createServer} = require('node:http');
		const {createReadStream} = require('node:fs');
		const path = url => require('node:path').join(${JSON.stringify(directory)}, require('node:path').normalize(decodeURIComponent(url)));
		createServer((request, response) => {
			const file = createReadStream(path(request.url));
			file.once('error', () => response.writeHead(404).end());
			file.once('open', () => file.pipe(response));
		}).listen(${port}, () => console.log('listening'));
	`;
	const server = world.far.spawn([process.execPath, '-e', serve]);
	await new Promise((resolve, reject) => {
		server.once('exit', () => reject(new Error('the web server has ended')));
		server.stdout!.once('data', resolve);
	});
	return {
		url: `http://${address.far.ip}:${port}/`,
		keyPath,
		publish: async packages => {
			await cp(packages.directory, directory, {recursive: true, filter: path => !path.endsWith('SHA256SUMS')});
			await sh(
				'apt-ftparchive packages . > Packages; apt-ftparchive release . > Release; gpg -q --batch --yes --clearsign --output InRelease Release',
			);
		},
	};
}
