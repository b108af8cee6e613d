import {stat} from 'node:fs/promises';

/**
 * Changes whenever a file does: written, replaced, removed, or reached through a symlink that was swapped, as
 * Kubernetes and cert-manager do. Looking at it each second replaces a watch, which network file systems and symlink
 * chains defeat.
 */
export async function fingerprint(path: string): Promise<string> {
	try {
		const {dev, ino, size, mtimeNs, ctimeNs} = await stat(path, {bigint: true});
		return [dev, ino, size, mtimeNs, ctimeNs].join(':');
	} catch {
		return 'absent'; // why it cannot be looked at is told by the next read
	}
}
